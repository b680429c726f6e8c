"""Where the next tokens of sequences are chosen: here, from logits, or by the engine, greedily.

Both choose the same ids where both may be used; the engine's way moves no logits.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..engine.protocol import Engine
from .channels import Piece
from .decoding import Decoding
from .steps import Step


class Choosing(NamedTuple):
    """A step of the engine, and how a sequence takes one row of what the step gives."""

    step: Step
    push: Callable[[Decoding, Any], list[Piece]]


def choosing_for(engine: Engine, sequences: Sequence[Decoding]) -> Choosing:
    """Let the engine choose, unless one of the sequences needs logits."""
    if any(one.needs_logits for one in sequences):
        return Choosing(engine.step, Decoding.push)
    return Choosing(engine.step_greedy, Decoding.push_best)
