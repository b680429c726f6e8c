"""Load cubins and launch them through the CUDA driver.

Source: CUDA Driver API 12 and 13 (`cuda.h`): cuCtxGetCurrent, cuCtxGetDevice,
cuDeviceGetAttribute, cuModuleLoadData, cuModuleGetFunction, cuFuncSetAttribute, cuLaunchKernel.
"""

import ctypes
from collections.abc import Sequence
from typing import Protocol

from ..cuda import Cuda
from .launch import Cubin, Grid, Launch

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Of CUdevice_attribute."""
_MAX_DYNAMIC_SHARED = 8
"""Of CUfunction_attribute."""
_SHARED_WITHOUT_ASKING = 48 * 1024
_THREADS_OF_WARP = 32

Argument = ctypes.c_uint64 | ctypes.c_int32


class Driver(Protocol):
    """What a plugin needs of CUDA. A context is current when it is called."""

    def device_sm(self) -> int:
        """Give the compute capability of the current context's device, as in 89."""

    def load(self, cubin: Cubin) -> int:
        """Load a cubin into the current context, once; return the handle of its function."""

    def launch(
        self, function: int, cubin: Cubin, grid: Grid, arguments: Sequence[Argument], stream: int
    ) -> None:
        """Launch a loaded cubin on a stream; return before it has run."""


class CudaDriver:
    """The driver of this machine.

    Args:
        cuda: its functions.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._call = cuda.call
        self._functions: dict[tuple[int | None, bytes], int] = {}  # by context and code
        self._sms: dict[int, int] = {}  # by device

    def device_sm(self) -> int:
        """Give the compute capability of the current context's device, as in 89."""
        device = ctypes.c_int()
        self._call("cuCtxGetDevice", ctypes.byref(device))
        if device.value not in self._sms:
            major, minor = ctypes.c_int(), ctypes.c_int()
            for value, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
                self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            self._sms[device.value] = 10 * major.value + minor.value
        return self._sms[device.value]

    def load(self, cubin: Cubin) -> int:
        """Load a cubin into the current context, once; return the handle of its function."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        key = (context.value, cubin.code)
        if key not in self._functions:
            self._functions[key] = self._load(cubin)
        return self._functions[key]

    def launch(
        self, function: int, cubin: Cubin, grid: Grid, arguments: Sequence[Argument], stream: int
    ) -> None:
        """Launch a loaded cubin on a stream; return before it has run.

        The driver copies the arguments before it returns.
        """
        addresses = [ctypes.addressof(argument) for argument in arguments]
        self._call(
            "cuLaunchKernel",
            ctypes.c_void_p(function),
            *(ctypes.c_uint(size) for size in (grid.x, grid.y, 1)),
            *(ctypes.c_uint(size) for size in (_THREADS_OF_WARP * cubin.num_warps, 1, 1)),
            ctypes.c_uint(cubin.shared_bytes),
            ctypes.c_void_p(stream),
            (ctypes.c_void_p * len(addresses))(*addresses),
            ctypes.c_void_p(),
        )

    def _load(self, cubin: Cubin) -> int:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(cubin.code))
        entry = ctypes.c_char_p(cubin.entry.encode())
        self._call("cuModuleGetFunction", ctypes.byref(function), module, entry)
        if cubin.shared_bytes > _SHARED_WITHOUT_ASKING:
            shared = ctypes.c_int(cubin.shared_bytes)
            self._call("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED), shared)
        if function.value is None:
            raise RuntimeError(f"cuModuleGetFunction found no {cubin.entry}")
        return function.value


def run_launch(
    driver: Driver,
    launch: Launch,
    inputs: Sequence[int],
    outputs: Sequence[int],
    num_tokens: int,
    stream: int,
) -> None:
    """Launch the kernel for N tokens on a stream, if there is anything to do.

    Args:
        driver: of the current context.
        launch: the node.
        inputs: addresses of the node's inputs.
        outputs: addresses of its outputs.
        num_tokens: N.
        stream: handle of a CUDA stream.

    Raises:
        UnsupportedError: there is no kernel for the device.
    """
    variant = launch.variant_for(num_tokens)
    grid = launch.grid(variant, num_tokens)
    if grid.y == 0:
        return
    cubin = launch.cubin_for(variant, driver.device_sm())
    arguments = [_argument(one, inputs, outputs, num_tokens) for one in launch.arguments]
    driver.launch(driver.load(cubin), cubin, grid, arguments, stream)


def _argument(
    description: str, inputs: Sequence[int], outputs: Sequence[int], num_tokens: int
) -> Argument:
    """Make one value that a kernel takes; see `Launch.arguments`."""
    kind, _, index = description.partition(" ")
    if kind == "tokens":
        return ctypes.c_int32(num_tokens)
    pointers = {"input": inputs, "output": outputs}
    return ctypes.c_uint64(pointers[kind][int(index)] if kind in pointers else 0)


def load_driver() -> CudaDriver:
    """Open the driver of this machine.

    Raises:
        UnsupportedError: there is none.
    """
    return CudaDriver(Cuda.load())
