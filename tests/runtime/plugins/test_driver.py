"""What the CUDA driver is asked to do."""

import ctypes

import pytest

from runtime.cuda import Cuda, CudaError
from runtime.plugins.driver import CudaDriver
from runtime.plugins.launch import Cubin, Grid

from .fake_cuda import FakeCuda, Launched


def make_cubin(*, shared_bytes: int = 1024, code: bytes = b"one") -> Cubin:
    return Cubin(sm=89, entry="route", num_warps=8, shared_bytes=shared_bytes, code=code)


@pytest.mark.parametrize("sm", [86, 89, 120])
def test_the_device_of_the_current_context_is_asked(sm: int) -> None:
    assert CudaDriver(Cuda(FakeCuda(sm))).device_sm() == sm


def test_a_cubin_is_loaded_once_in_each_context() -> None:
    cuda = FakeCuda(89)
    made = CudaDriver(Cuda(cuda))
    first = made.load(make_cubin())
    assert made.load(make_cubin()) == first
    other = made.load(make_cubin(code=b"two"))
    cuda.context = 0xC1
    again = made.load(make_cubin())
    assert len({first, other, again}) == 3
    assert cuda.codes == [b"one", b"two", b"one"]
    assert cuda.entries == ["route"] * 3


def test_much_shared_memory_is_asked_for() -> None:
    cuda = FakeCuda(89)
    made = CudaDriver(Cuda(cuda))
    made.load(make_cubin(shared_bytes=48 * 1024))
    assert cuda.shared == {}
    function = made.load(make_cubin(shared_bytes=66560, code=b"two"))
    assert cuda.shared == {function: 66560}


def test_a_launch_passes_exactly_these_bytes() -> None:
    cuda = FakeCuda(89, parameter_sizes=(8, 4, 8))
    made = CudaDriver(Cuda(cuda))
    pointer, tokens, null = ctypes.c_uint64(0x7F00_1234_5678), ctypes.c_int32(5), ctypes.c_uint64(0)
    made.launch(0xF0, make_cubin(), Grid(3, 70000), (pointer, tokens, null), 0x51)
    assert cuda.launches == [
        Launched(
            function=0xF0,
            grid=(3, 70000, 1),
            threads=(256, 1, 1),
            shared_bytes=1024,
            stream=0x51,
            parameters=(b"\x78\x56\x34\x12\x00\x7f\0\0", b"\x05\0\0\0", bytes(8)),
        )
    ]


def test_an_error_of_the_driver_is_told() -> None:
    cuda = FakeCuda(89)
    cuda.failing = "cuModuleLoadData"
    with pytest.raises(CudaError, match="cuModuleLoadData: CUDA error 218: a PTX JIT"):
        CudaDriver(Cuda(cuda)).load(make_cubin())
