"""A step run piece by piece on a device, and what is done about rows that went wrong."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import names
from ...limits import Limits
from ..checks import check_rows, check_step, finite_rows
from ..protocol import FloatArray, IntArray
from .pieces import Piece, cut_step

Wanted = Literal["logits", "best"]


class HeadRows(NamedTuple):
    """What was read of the head for N rows."""

    found: NDArray[Any]
    """Logits (N, V) or ids (N,)."""
    is_finite: NDArray[np.bool_]
    """Of which rows all logits are finite, (N,)."""


def read_head(
    wanted: Wanted, shape: tuple[int, int], copied: Callable[[str, tuple[int, ...]], NDArray[Any]]
) -> HeadRows:
    """Copy logits of the last run (N, V), or their best ids (N,): 8 bytes for each row.

    Whether a row's logits are finite is told by its sum of squares, and by an id: where a NaN is
    the highest, no logit equals it, and the id is behind the vocabulary.

    Args:
        wanted: which of them.
        shape: of the logits, (N, V).
        copied: gives an output of the head, by name, of some shape.
    """
    num_rows, vocab_size = shape
    if wanted == "logits":
        logits = copied(names.LOGITS, shape)
        return HeadRows(logits, finite_rows(logits))
    is_finite = np.isfinite(copied(names.ENERGY, (num_rows,)))
    best = copied(names.BEST, (num_rows,)).astype(np.int64)
    return HeadRows(best, is_finite & (best >= 0) & (best < vocab_size))


class SlotMemory(Protocol):
    """The cache on a device."""

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: attention masks what is behind a text, but 0 x NaN is not 0."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another, in every layer."""


PieceRun = Callable[[Piece, FloatArray, IntArray], HeadRows]
"""Runs one piece: its hidden states (B, S, C), and tokens that each slot has before, (B,)."""


def run_in_pieces(
    slots: Sequence[int],
    hidden: FloatArray,
    lengths: IntArray,
    rows: IntArray,
    *,
    found: NDArray[Any],
    run: PieceRun,
    cache: SlotMemory,
    limits: Limits,
) -> None:
    """Append tokens to slots and fill `found` (N, ...) with what a run gives for chosen ones.

    Args:
        slots: B different ones.
        hidden: (B, S, C).
        lengths: tokens already in each slot, (B,).
        rows: which of the flattened (B * S) tokens are wanted, (N,).
        found: logits or ids of these.
        run: of slots that are neighbours, at most `prefill_chunk` tokens each.
        cache: slots that end in something that is not finite are cleared in it.
        limits: slots, their capacity, tokens of a piece.

    Raises:
        CapacityError: the cache has no place for the step.
        NonFiniteRowsError: some rows are not finite.
    """
    check_step(slots, hidden, lengths, limits)
    is_finite = np.ones(len(rows), dtype=np.bool_)
    num_new = hidden.shape[1]
    for piece in cut_step(slots, num_new, rows, limits.prefill_chunk):
        given = hidden[piece.batch, piece.tokens]
        done = lengths[piece.batch] + piece.tokens.start
        found[piece.places], is_finite[piece.places] = run(piece, given, done)
    for place in np.unique(rows[~is_finite] // num_new):
        cache.clear(slots[place])
    check_rows(found, is_finite, "the decoder")
