"""How much of some files the page cache holds, so that a start is called cold or warm by fact.

Source: mincore(2). Where the system does not say, for files that are not ours, it calls all pages
resident.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_IN_CORE = 1
"""The lowest bit of what mincore writes for a page."""


@dataclass(frozen=True, kw_only=True)
class CachedFiles:
    """Some files, and what of them is in memory."""

    bytes: int
    cached_bytes: int

    @property
    def share(self) -> float:
        """Between 0, cold, and 1, warm."""
        return self.cached_bytes / self.bytes if self.bytes else 1.0


def look_at(paths: Iterable[Path]) -> CachedFiles:
    """Ask for the pages of files; nothing is read."""
    sizes = [(path.stat().st_size, path) for path in paths]
    return CachedFiles(
        bytes=sum(size for size, _ in sizes),
        cached_bytes=sum(_cached_bytes(path, size) for size, path in sizes if size),
    )


def _cached_bytes(path: Path, size: int) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    if library.mincore(mapped.ctypes.data, size, pages.ctypes.data):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return min(size, int((pages & _IN_CORE).sum()) * mmap.PAGESIZE)
