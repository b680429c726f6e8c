"""Which card is here, what drives it, and how much of its memory is used."""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from runtime.cuda import Cuda
from runtime.engine.gpu.device import CudaDevice

_DRIVER = Path("/proc/driver/nvidia/version")
PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "transformers",
    "triton",
    "tensorrt_rtx",
    "tensorrt",
    "numpy",
)
"""Whose versions decide the figures."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The first GPU."""

    name: str
    sm: int
    """Compute capability, as in 90."""
    memory_bytes: int
    driver: str


class Memory:
    """The memory of the first GPU, whoever uses it."""

    def __init__(self, cuda: Cuda) -> None:
        """Take the GPU.

        Raises:
            UnsupportedError: there is none.
        """
        self._cuda = cuda
        self.device = CudaDevice(cuda)

    @classmethod
    def load(cls) -> "Memory":
        """Open the driver and take the first GPU.

        Raises:
            UnsupportedError: there is none.
        """
        return cls(Cuda.load())

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self._info()[1]

    @property
    def used_bytes(self) -> int:
        """What is not free."""
        free, total = self._info()
        return total - free

    def _info(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.device.active():
            self._cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


def describe_card(memory: Memory, driver: Path = _DRIVER) -> Card:
    """Name the card; the driver's version is read from the driver's own file."""
    text = driver.read_text() if driver.exists() else ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return Card(
        name=memory.device.name,
        sm=memory.device.sm,
        memory_bytes=memory.total_bytes,
        driver=found[0] if found else "unknown",
    )
