"""An engine without a model whose steps take a known time by a clock of its own."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.engine.protocol import FloatArray, IntArray
from runtime.limits import Limits
from runtime.prompt.patches import PatchedImage

WIDTH = 2
VOCABULARY = 50


class Step(NamedTuple):
    slots: tuple[int, ...]
    num_tokens: int
    lengths: tuple[int, ...]


class ClockedEngine:
    """A token takes 1 s, and 0.001 s more for each that is before it; an image token takes 2 s.

    As in a real cache, what is behind a slot's length stays until it is overwritten.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.now_s = 0.0
        self.steps: list[Step] = []
        self.copies: list[tuple[int, int, int]] = []
        self.num_images = 0
        self._written = [0] * limits.max_slots

    def clock(self) -> float:
        return self.now_s

    @property
    def limits(self) -> Limits:
        return self._limits

    def encode(self, image: PatchedImage) -> FloatArray:
        self.num_images += 1
        self.now_s += 2.0 * image.num_tokens
        return np.zeros((image.num_tokens, WIDTH), dtype=np.float32)

    def embed(self, ids: IntArray) -> FloatArray:
        assert ((ids >= 0) & (ids < VOCABULARY)).all()
        return np.zeros((ids.size, WIDTH), dtype=np.float32)

    def step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        num_tokens = hidden.shape[1]
        assert num_tokens <= self._limits.prefill_chunk
        for slot, length in zip(slots, lengths.tolist(), strict=True):
            assert length <= self._written[slot], "a token behind a hole"
            assert length + num_tokens <= self._limits.max_tokens
            self._written[slot] = max(self._written[slot], length + num_tokens)
        self.now_s += num_tokens + 0.001 * max(lengths.tolist())
        self.steps.append(Step(tuple(slots), num_tokens, tuple(lengths.tolist())))
        return np.zeros((rows.size, VOCABULARY), dtype=np.float32)

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        best: IntArray = self.step(slots, hidden, lengths, rows).argmax(axis=1)
        return best

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        assert length <= self._written[source]
        self.copies.append((source, target, length))
        self._written[target] = max(self._written[target], length)
