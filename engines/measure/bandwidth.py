"""How fast this machine reads memory: the roof over every decoding speed.

Threads only read, on large pages, from a buffer that no cache holds. The buffer is new every time:
what a machine gives can differ from one process to the next, and with what its neighbours do, so
measure in the run that it is for. With the library of custom ops its read loop is used, which asks
for lines ahead; else a reduction of numpy, which gets up to a fifth less.
"""

import ctypes
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.engine.cpu.weights_place import available_bytes
from runtime.errors import CapacityError
from runtime.ops.library import find_library

BUFFER_BYTES = 2 << 30
"""Well above the last cache."""
PASSES = 7
_PIECE_BYTES = 32 << 20
"""What a thread takes at a time: one whose core is busy gets fewer."""
_MEMORY_SHARE = 2
"""Of the memory that is available, one part in so many is the most that a buffer takes."""

Reader = Literal["kernels", "numpy"]
_Words = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Read-only bandwidth in GB/s, 1e9 bytes per second."""

    samples: tuple[float, ...]
    """One for each time that the whole buffer was read."""
    reader: Reader

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.samples)

    def plus(self, other: "Bandwidth") -> "Bandwidth":
        """Join the samples of two measurements by the same reader."""
        return Bandwidth(samples=(*self.samples, *other.samples), reader=self.reader)


def measure_bandwidth(
    *, threads: int, buffer_bytes: int = BUFFER_BYTES, passes: int = PASSES
) -> Bandwidth:
    """Read a buffer several times; one or two seconds at the default sizes.

    Args:
        threads: that read at the same time.
        buffer_bytes: well above the last cache; less where the machine has too little memory.
        passes: how often the whole buffer is read.

    Raises:
        CapacityError: there is no memory for one piece of a buffer.
        UnsupportedError: the library of custom ops is not what was built.
    """
    library = find_library()
    read = _numpy_reader if library is None else _library_reader(library)
    pieces = _make_pieces(min(buffer_bytes, available_bytes() // _MEMORY_SHARE))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_write, pieces))  # memory becomes real, and threads are started
        samples = [_time_pass(pool, read, pieces) for _ in range(passes)]
    return Bandwidth(samples=tuple(samples), reader="numpy" if library is None else "kernels")


def _make_pieces(buffer_bytes: int) -> list[_Words]:
    """Reserve memory of large pages, cut for the threads."""
    count = buffer_bytes // _PIECE_BYTES
    if count == 0:
        raise CapacityError(
            f"measuring bandwidth: a buffer of {buffer_bytes} bytes is less than a piece of "
            f"{_PIECE_BYTES}; end other programs"
        )
    memory = mmap.mmap(-1, count * _PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    words: _Words = np.frombuffer(memory, dtype=np.uint64)
    return np.split(words, count)


def _write(piece: _Words) -> None:
    piece[...] = 1


def _time_pass(
    pool: ThreadPoolExecutor, read: Callable[[_Words], Any], pieces: list[_Words]
) -> float:
    start = perf_counter()
    list(pool.map(read, pieces))
    return sum(piece.nbytes for piece in pieces) / (perf_counter() - start) / 1e9


def _numpy_reader(piece: _Words) -> Any:  # noqa: ANN401  a number that nobody looks at
    return np.bitwise_xor.reduce(piece)


def _library_reader(library: Path) -> Callable[[_Words], Any]:
    function = ctypes.CDLL(str(library)).kimivl_read_memory
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_uint64
    return lambda piece: function(piece.ctypes.data, piece.nbytes)
