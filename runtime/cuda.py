"""The CUDA driver by ctypes: calls that fail become errors with the driver's own words.

Source: CUDA Driver API 12 and 13 (`cuda.h`).
"""

import ctypes
from collections.abc import Callable
from typing import Protocol

from .errors import KimiVLError, UnsupportedError

_LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""


class Library(Protocol):
    """A shared library as ctypes loads it."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Find a function."""


class CudaError(KimiVLError):
    """A call of the driver failed."""

    def __init__(self, name: str, status: int, reason: str) -> None:
        super().__init__(f"{name}: CUDA error {status}: {reason}")
        self.status = status


class Cuda:
    """The driver of this machine.

    Args:
        library: `libcuda.so.1` as ctypes loads it.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    @classmethod
    def load(cls) -> "Cuda":
        """Open the driver.

        Raises:
            UnsupportedError: there is none.
        """
        try:
            return cls(ctypes.CDLL(_LIBRARY))
        except OSError as error:
            raise UnsupportedError(
                f"no CUDA driver: {error}; what needs a GPU runs where one is installed"
            ) from error

    def call(self, name: str, *arguments: object) -> None:
        """Call a function.

        Raises:
            CudaError: it failed.
        """
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise CudaError(name, 0, "this driver is too old and does not have it") from error
        status = function(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise CudaError(name, status, text.value.decode() if text.value else "unknown")
