"""A step cut into pieces that a plan takes: slots beside each other in the cache, some tokens.

The cache of a plan is one block of memory, so the slots of a piece are neighbours in rising order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..protocol import IntArray


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some tokens of some slots of a step of (B, S) tokens."""

    first_slot: int
    batch: slice
    """Which of the B slots, in the order of the step."""
    tokens: slice
    """Which of the S tokens."""
    rows: IntArray
    """Tokens of this piece that need logits, as indices into its own flattened tokens."""
    places: IntArray
    """Where these logits stand among those of the step."""


def cut_step(
    slots: Sequence[int], num_new: int, rows: IntArray, max_tokens: int
) -> Iterator[Piece]:
    """Cut a step, in the order in which pieces have to run.

    Args:
        slots: of the step.
        num_new: S.
        rows: which tokens need logits, as indices into the flattened (B * S).
        max_tokens: the most tokens of a piece in one slot.
    """
    which, token = np.divmod(rows, num_new)
    for start in range(0, num_new, max_tokens):
        tokens = slice(start, min(start + max_tokens, num_new))
        for batch in _neighbours(slots):
            is_here = (which >= batch.start) & (which < batch.stop)
            is_here &= (token >= tokens.start) & (token < tokens.stop)
            (places,) = np.nonzero(is_here)
            width = tokens.stop - tokens.start
            inside = (which[places] - batch.start) * width + token[places] - tokens.start
            yield Piece(
                first_slot=slots[batch.start],
                batch=batch,
                tokens=tokens,
                rows=inside,
                places=places,
            )


def _neighbours(slots: Sequence[int]) -> Iterator[slice]:
    """Cut slots where the next one is not the neighbour in the cache."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield slice(start, end)
            start = end
