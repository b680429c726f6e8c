"""The device that an engine runs on: memory, one stream, recordings. CUDA, through its driver.

Source: CUDA Driver API 12 and 13 (`cuda.h`): memory management, stream capture, graphs.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from numpy.typing import NDArray

from ...cuda import OUT_OF_MEMORY, Cuda, CudaError
from ...errors import CapacityError, UnsupportedError

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Of CUdevice_attribute."""
_NAME_BYTES = 256
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING."""
_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on with what they do."""

Handle = int


class Device(Protocol):
    """What the engine needs of a GPU. Work is done in the order in which it is asked for."""

    name: str
    sm: int
    """Compute capability, as in 89."""
    stream: Handle

    def active(self) -> AbstractContextManager[None]:
        """Give one thread after the other the device."""

    def allocate(self, size_bytes: int) -> int:
        """Reserve memory and give its address, a multiple of 256.

        Raises:
            CapacityError: there is not that much.
        """

    def free(self, address: int) -> None:
        """Give memory back, when all work before is done."""

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Copy a contiguous array to the device; it may be changed afterwards."""

    def read(self, address: int, values: NDArray[Any]) -> None:
        """Fill a contiguous array from the device, when all work before is done."""

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        """Copy within the device."""

    def clear(self, address: int, size_bytes: int) -> None:
        """Fill with zeros."""

    def record(self, work: Callable[[], None]) -> Handle:
        """Record what `work` asks for, without doing it; give the recording."""

    def replay(self, recording: Handle) -> None:
        """Do what was recorded."""

    def forget(self, recording: Handle) -> None:
        """Give the memory of a recording back."""


class CudaDevice:
    """The first GPU that this process sees."""

    def __init__(self, cuda: Cuda) -> None:
        """Take the GPU.

        Raises:
            UnsupportedError: there is none that can be used.
        """
        self._cuda, self._lock = cuda, threading.RLock()
        try:
            self._open(cuda)
        except CudaError as error:
            raise UnsupportedError(f"no GPU that can be used: {error}") from error

    def _open(self, cuda: Cuda) -> None:
        cuda.call("cuInit", ctypes.c_uint(0))
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        cuda.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        cuda.call("cuCtxSetCurrent", self._context)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        cuda.call("cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
        self.name = name.value.decode()
        self.sm = 10 * self._attribute(_CAPABILITY_MAJOR, device)
        self.sm += self._attribute(_CAPABILITY_MINOR, device)
        stream = ctypes.c_void_p()
        cuda.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self.stream: Handle = stream.value or 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Give one thread after the other the device: a context is current in one thread."""
        with self._lock:
            self._cuda.call("cuCtxSetCurrent", self._context)
            yield

    def allocate(self, size_bytes: int) -> int:
        """Reserve memory and give its address; the driver aligns to 256 bytes at least."""
        address = ctypes.c_uint64()
        try:
            self._cuda.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        except CudaError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self._cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            raise CapacityError(
                f"{self.name}: {size_bytes / 1e6:,.0f} MB more are needed, "
                f"{free.value / 1e6:,.0f} of {total.value / 1e6:,.0f} MB are free; end what else "
                "uses the GPU, or build with a smaller --max-kv-cache-capacity, --max-batch-size "
                "or --prefill-chunk"
            ) from error
        return address.value

    def free(self, address: int) -> None:
        """Give memory back, when all work before is done."""
        self._cuda.call("cuStreamSynchronize", self._stream)
        self._cuda.call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Copy a contiguous array to the device, and wait: not all drivers stage what they read."""
        host = ctypes.c_void_p(values.ctypes.data)
        size = ctypes.c_size_t(values.nbytes)
        self._cuda.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), host, size, self._stream)
        self._cuda.call("cuStreamSynchronize", self._stream)

    def read(self, address: int, values: NDArray[Any]) -> None:
        """Fill a contiguous array from the device, when all work before is done."""
        host = ctypes.c_void_p(values.ctypes.data)
        size = ctypes.c_size_t(values.nbytes)
        self._cuda.call("cuMemcpyDtoHAsync_v2", host, ctypes.c_uint64(address), size, self._stream)
        self._cuda.call("cuStreamSynchronize", self._stream)

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        """Copy within the device."""
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
        size = ctypes.c_size_t(size_bytes)
        self._cuda.call("cuMemcpyDtoDAsync_v2", *addresses, size, self._stream)

    def clear(self, address: int, size_bytes: int) -> None:
        """Fill with zeros."""
        zero, size = ctypes.c_ubyte(0), ctypes.c_size_t(size_bytes)
        self._cuda.call("cuMemsetD8Async", ctypes.c_uint64(address), zero, size, self._stream)

    def record(self, work: Callable[[], None]) -> Handle:
        """Record what `work` asks for, without doing it; give the recording."""
        graph, recording = ctypes.c_void_p(), ctypes.c_void_p()
        self._cuda.call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            work()
        finally:
            self._cuda.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        flags = ctypes.c_ulonglong(0)
        self._cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(recording), graph, flags)
        self._cuda.call("cuGraphDestroy", graph)
        return recording.value or 0

    def replay(self, recording: Handle) -> None:
        """Do what was recorded."""
        self._cuda.call("cuGraphLaunch", ctypes.c_void_p(recording), self._stream)

    def forget(self, recording: Handle) -> None:
        """Give the memory of a recording back."""
        self._cuda.call("cuGraphExecDestroy", ctypes.c_void_p(recording))

    @property
    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _attribute(self, attribute: int, device: ctypes.c_int) -> int:
        value, which = ctypes.c_int(), ctypes.c_int(attribute)
        self._cuda.call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value
