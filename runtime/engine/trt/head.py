"""The head on the device: its buffers, and the two ways to read what it gives."""

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import names
from ...limits import Limits
from ..gpu.memory import Memory
from ..gpu.numbers import STORED, to_stored
from ..gpu.piecewise import HeadRows, Wanted, read_head
from ..protocol import IntArray
from .plan import Shape
from .stage import Stage


class Head:
    """Logits of some rows, and which is the best of each; one buffer for each, used again."""

    def __init__(self, stage: Stage, *, vocab_size: int, limits: Limits, memory: Memory) -> None:
        """Reserve buffers for the most rows that a run takes.

        Args:
            stage: final norm, logits, and their best.
            vocab_size: V.
            limits: slots, tokens of a step.
            memory: of the device, to take from.
        """
        self.plan = stage.plan
        self.max_rows = max(limits.max_slots, limits.prefill_chunk)
        self._stage, self._vocab_size, self._device = stage, vocab_size, memory.device
        self._rows = memory.allocate(8 * self.max_rows)
        self._outputs = {
            names.LOGITS: memory.allocate(4 * self.max_rows * vocab_size),
            names.BEST: memory.allocate(4 * self.max_rows),
            names.ENERGY: memory.allocate(4 * self.max_rows),
        }

    def write_rows(self, rows: IntArray) -> None:
        """Say which tokens the next run takes, as indices into its flattened tokens."""
        self._device.write(self._rows, to_stored(rows, self.plan.dtype(names.ROWS)))

    def enqueue(self, hidden: int, shape: Shape, num_rows: int, owner: Hashable = None) -> None:
        """Ask the device to run the head.

        Args:
            hidden: address of the hidden states.
            shape: of these, (B, S, C).
            num_rows: how many rows were written.
            owner: as in `Plan.enqueue`.
        """
        shapes = {names.HIDDEN: shape, names.ROWS: (num_rows,)}
        addresses = {names.HIDDEN: hidden, names.ROWS: self._rows, **self._outputs}
        self._stage.enqueue(shapes, addresses, owner)

    def read(self, wanted: Wanted, num_rows: int) -> HeadRows:
        """Copy logits of the last run (N, V), or their best ids (N,)."""
        return read_head(wanted, (num_rows, self._vocab_size), self._copied)

    def _copied(self, name: str, shape: Shape) -> NDArray[Any]:
        stored = np.empty(shape, dtype=STORED[self.plan.dtype(name)])
        if stored.size:
            self._device.read(self._outputs[name], stored)
        return stored
