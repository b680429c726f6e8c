"""The CUDA device on a driver library that writes down what it is asked."""

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest

from runtime.cuda import Cuda, CudaError
from runtime.engine.gpu.device import CudaDevice
from runtime.errors import CapacityError, UnsupportedError

Argument = Any  # a ctypes value or array


class Reference(Protocol):
    """What `ctypes.byref` gives."""

    _obj: Any


class FakeLibrary:
    """Answers as a driver does whose device has 1,000 bytes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing = ""
        self.free = 1000

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Argument) -> int:
            plain = tuple(getattr(one, "value", one) for one in arguments)
            self.calls.append((name, plain))
            if name == self.failing:
                return 700
            return int(getattr(self, f"answer_{name}", lambda *_: 0)(*arguments))

        if name.startswith("answer_"):
            raise AttributeError(name)
        return call

    def answer_cuGetErrorString(self, status: int, text: Reference) -> int:
        text._obj.value = f"error {status}".encode()
        return 0

    def answer_cuDeviceGetName(self, name: Argument, length: Argument, device: Argument) -> int:
        name.value = b"a card"
        return 0

    def answer_cuDeviceGetAttribute(
        self, value: Reference, which: Argument, device: Argument
    ) -> int:
        value._obj.value = {75: 12, 76: 0}[which.value]
        return 0

    def answer_cuStreamCreate(self, stream: Reference, flags: Argument) -> int:
        stream._obj.value = 0x5
        return 0

    def answer_cuMemAlloc_v2(self, address: Reference, size: Argument) -> int:
        if size.value > self.free:
            return 2
        address._obj.value = 0x7000
        return 0

    def answer_cuMemGetInfo_v2(self, free: Reference, total: Reference) -> int:
        free._obj.value, total._obj.value = 250_000_000, 1_000_000_000
        return 0

    def answer_cuStreamEndCapture(self, stream: Argument, graph: Reference) -> int:
        graph._obj.value = 0x61
        return 0

    def answer_cuGraphInstantiateWithFlags(
        self, made: Reference, graph: Argument, flags: Argument
    ) -> int:
        assert graph.value == 0x61
        made._obj.value = 0x62
        return 0


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture
def device(library: FakeLibrary) -> CudaDevice:
    made = CudaDevice(Cuda(library))
    library.calls.clear()
    return made


def names(library: FakeLibrary) -> list[str]:
    return [name for name, _ in library.calls]


def test_the_device_tells_its_name_and_capability(device: CudaDevice) -> None:
    assert (device.name, device.sm, device.stream) == ("a card", 120, 5)


def test_copies_go_to_the_stream_in_the_order_of_the_driver(
    device: CudaDevice, library: FakeLibrary
) -> None:
    values = np.arange(6, dtype=np.float32)
    place = values.ctypes.data
    device.write(0x7000, values)
    device.read(0x7000, values)
    device.copy(0x7000, 0x7100, 24)
    device.clear(0x7100, 24)
    assert library.calls == [
        ("cuMemcpyHtoDAsync_v2", (0x7000, place, 24, 5)),
        ("cuStreamSynchronize", (5,)),
        ("cuMemcpyDtoHAsync_v2", (place, 0x7000, 24, 5)),
        ("cuStreamSynchronize", (5,)),
        ("cuMemcpyDtoDAsync_v2", (0x7100, 0x7000, 24, 5)),
        ("cuMemsetD8Async", (0x7100, 0, 24, 5)),
    ]


def test_memory_that_is_not_there_is_told_with_what_there_is(device: CudaDevice) -> None:
    assert device.allocate(1000) == 0x7000
    with pytest.raises(CapacityError, match=r"a card: 2 MB more are needed, 250 of 1,000 MB are"):
        device.allocate(2_000_000)


def test_memory_is_given_back_when_the_work_is_done(
    device: CudaDevice, library: FakeLibrary
) -> None:
    device.free(0x7000)
    assert library.calls == [("cuStreamSynchronize", (5,)), ("cuMemFree_v2", (0x7000,))]


def test_work_is_recorded_and_replayed(device: CudaDevice, library: FakeLibrary) -> None:
    recording = device.record(lambda: device.copy(1, 2, 3))
    device.replay(recording)
    device.forget(recording)
    assert names(library) == [
        "cuStreamBeginCapture_v2",
        "cuMemcpyDtoDAsync_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]
    assert library.calls[-2][1] == (0x62, 5)


def test_a_recording_that_fails_is_ended(device: CudaDevice, library: FakeLibrary) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        device.record(fail)
    assert names(library) == ["cuStreamBeginCapture_v2", "cuStreamEndCapture"]


def test_a_failed_call_is_named_with_the_drivers_words(
    device: CudaDevice, library: FakeLibrary
) -> None:
    library.failing = "cuGraphLaunch"
    with pytest.raises(CudaError, match="cuGraphLaunch: CUDA error 700: error 700"):
        device.replay(1)


def test_a_driver_without_a_gpu_says_so_in_one_line(library: FakeLibrary) -> None:
    library.failing = "cuInit"
    with pytest.raises(UnsupportedError, match="no GPU that can be used: cuInit: CUDA error 700"):
        CudaDevice(Cuda(library))


def test_a_driver_that_is_too_old_says_what_it_lacks() -> None:
    with pytest.raises(UnsupportedError, match=r"cuInit: .* this driver is too old"):
        CudaDevice(Cuda(object()))  # type: ignore[arg-type]  # a library without functions


def test_the_context_is_current_in_the_thread_that_works(
    device: CudaDevice, library: FakeLibrary
) -> None:
    def work() -> None:
        with device.active():
            device.copy(1, 2, 3)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert names(library) == ["cuCtxSetCurrent", "cuMemcpyDtoDAsync_v2"]
