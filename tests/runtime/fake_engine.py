"""An engine without a model: logits come from a table, and every call is checked and recorded.

The hidden width is 2. The row of a token is (id, 0); row m of an image is (-1 - m, mean of its
patches), so that `FakeEngine.slots` shows what went where.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.engine.checks import check_rows, finite_rows
from runtime.engine.protocol import FloatArray, IntArray
from runtime.errors import CapacityError
from runtime.limits import Limits
from runtime.prompt.patches import PatchedImage

WIDTH = 2


class StepCall(NamedTuple):
    slots: tuple[int, ...]
    num_tokens: int  # S: appended to each slot
    lengths: tuple[int, ...]
    rows: tuple[int, ...]


class FakeEngine:
    """Answers position t of any slot with row t of a table (T, V); a row of NaN must not be asked.

    Checks what the protocol asks of a caller: different slots inside the limits, lengths that are
    not beyond what was written, shapes, dtypes, rows in range. A length below what was written
    rewinds the slot.
    """

    def __init__(self, table: FloatArray, limits: Limits) -> None:
        assert table.shape[0] == limits.max_tokens
        self._table = table
        self._limits = limits
        self.slots = [np.empty((0, WIDTH), dtype=np.float32) for _ in range(limits.max_slots)]
        self.steps: list[StepCall] = []
        self.num_logits_given = 0
        """Rows of logits that left the engine."""
        self.encoded: list[PatchedImage] = []
        self.copies: list[tuple[int, int, int]] = []

    @property
    def limits(self) -> Limits:
        return self._limits

    def encode(self, image: PatchedImage) -> FloatArray:
        assert image.grid.h * image.grid.w <= self._limits.max_patches
        self.encoded.append(image)
        rows = np.full((image.num_tokens, WIDTH), image.patches.mean(), dtype=np.float32)
        rows[:, 0] = -1 - np.arange(image.num_tokens)
        return rows

    def embed(self, ids: IntArray) -> FloatArray:
        assert ids.dtype == np.int64
        assert ids.ndim == 1
        assert ((ids >= 0) & (ids < self._table.shape[1])).all()
        rows = np.zeros((ids.size, WIDTH), dtype=np.float32)
        rows[:, 0] = ids
        rows.flags.writeable = False  # a real engine may hand out a view of its table
        return rows

    def step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        logits = self._step(slots, hidden, lengths, rows)
        self.num_logits_given += len(logits)
        check_rows(logits, finite_rows(logits), "the table")
        return logits

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        logits = self._step(slots, hidden, lengths, rows)
        is_finite = finite_rows(logits)
        best = [
            min(np.flatnonzero(row == row.max())) if is_good else 0
            for row, is_good in zip(logits, is_finite, strict=True)
        ]
        found = np.array(best, dtype=np.int64)
        check_rows(found, is_finite, "the table")
        return found

    def _step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        num_slots, num_tokens, width = hidden.shape
        assert width == WIDTH
        assert hidden.dtype == np.float32
        assert lengths.dtype == np.int64
        assert len(slots) == len(set(slots)) == num_slots == lengths.size
        assert num_tokens > 0
        assert ((rows >= 0) & (rows < num_slots * num_tokens)).all()
        self.steps.append(
            StepCall(tuple(slots), num_tokens, tuple(lengths.tolist()), tuple(rows.tolist()))
        )
        for slot, new, length in zip(slots, hidden, lengths.tolist(), strict=True):
            assert 0 <= slot < len(self.slots)
            written = self.slots[slot]
            assert 0 <= length <= len(written)
            if length + num_tokens > self._limits.max_tokens:
                raise CapacityError(f"{length} + {num_tokens} over {self._limits.max_tokens}")
            self.slots[slot] = np.concatenate([written[:length], new])
        which, token = np.divmod(rows, num_tokens)
        found = [
            self._row(slots[one], lengths[one] + at) for one, at in zip(which, token, strict=True)
        ]
        return np.array(found, dtype=np.float32).reshape(len(rows), self._table.shape[1])  # (N, V)

    def _row(self, slot: int, position: int) -> FloatArray:
        """Logits (V,) behind a token of a slot, which is written already."""
        row: FloatArray = self._table[position]
        return row

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert 0 <= length <= len(self.slots[source])
        self.copies.append((source, target, length))
        self.slots[target] = self.slots[source][:length].copy()

    def ids_in(self, slot: int) -> list[int]:
        """What is in a slot: token ids, and -1, -2, ... for the rows of an image."""
        return [int(row[0]) for row in self.slots[slot]]


def scripted_table(
    script: Sequence[int], *, prompt_len: int, vocab_size: int, max_tokens: int
) -> FloatArray:
    """A table (T, V) that makes a greedy decoder say `script` behind a prompt of that length.

    Rows of all other positions are NaN: asking for them is an error.
    """
    table = np.full((max_tokens, vocab_size), np.nan, dtype=np.float32)
    for index, token_id in enumerate(script):
        row = np.zeros(vocab_size, dtype=np.float32)
        row[token_id] = 10.0
        table[prompt_len - 1 + index] = row
    return table


def make_limits(
    *,
    max_tokens: int = 256,
    max_input_tokens: int | None = None,
    max_slots: int = 2,
    max_patches: int = 64,
    prefill_chunk: int = 4,
) -> Limits:
    """Limits of a small engine."""
    return Limits(
        max_tokens=max_tokens,
        max_input_tokens=max_tokens if max_input_tokens is None else max_input_tokens,
        max_slots=max_slots,
        max_patches=max_patches,
        prefill_chunk=prefill_chunk,
    )
