"""Hidden states of all samples in one file each: what goes from one graph to the next.

They are mapped, not held: a file of many gigabytes takes what memory the machine can spare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Items of different length, one after the other: item i is (counts[i], *tail) fp32."""

    path: Path
    counts: Sequence[int]
    tail: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole file."""
        return (max(1, sum(self.counts)), *self.tail)

    def writer(self) -> "RowsWriter":
        """Begin the file anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return RowsWriter(np.memmap(self.path, np.float32, "w+", shape=self.shape))

    def reader(self) -> "RowsReader":
        """Open the file."""
        ends = np.cumsum([0, *self.counts])
        return RowsReader(np.memmap(self.path, np.float32, "r", shape=self.shape), ends)


class RowsWriter:
    """Takes items in their order."""

    def __init__(self, array: np.memmap) -> None:
        self._array = array
        self._end = 0

    def add(self, item: Tensor) -> None:
        """Write the next item."""
        self._array[self._end : self._end + len(item)] = item.numpy()
        self._end += len(item)

    def close(self) -> None:
        """Bring everything to the disk."""
        self._array.flush()


class RowsReader:
    """Gives items by number."""

    def __init__(self, array: np.memmap, ends: np.ndarray) -> None:
        self._array = array
        self._ends = ends

    def __getitem__(self, index: int) -> Tensor:
        start, end = self._ends[index], self._ends[index + 1]
        return torch.from_numpy(np.array(self._array[start:end]))
