"""What an answer may be, told to the sampler token by token.

A `Grammar` is checked and compiled before a request is made, and may serve many; each answer
follows one `Constraint` of it.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.protocol import FloatArray
from ..errors import KimiVLError


class ConstraintError(KimiVLError):
    """A constraint allows no token, or took one that it does not allow."""


class Constraint(Protocol):
    """One answer's way through a grammar."""

    def allowed(self, best_id: int) -> NDArray[np.bool_]:
        """Tell which ids may come next, by id; ids behind the last one may not.

        Args:
            best_id: what the model itself would say, to tell whether it wants to think.

        Raises:
            ConstraintError: the grammar can no longer be followed.
        """

    def accept(self, token_id: int) -> None:
        """Go on behind a token that was allowed, or forced.

        Raises:
            ConstraintError: the grammar does not allow it.
        """


class Grammar(Protocol):
    """Something that answers can follow."""

    def start(self) -> Constraint:
        """Begin an answer."""


def mask_for(constraint: Constraint, logits: FloatArray) -> NDArray[np.bool_]:
    """Tell which of logits (V,) may be chosen, (V,); a table may be padded behind the last id.

    Raises:
        ConstraintError: none may.
    """
    allowed = constraint.allowed(int(logits.argmax()))
    mask = np.zeros(len(logits), dtype=np.bool_)
    mask[: len(allowed)] = allowed
    if not mask.any():
        raise ConstraintError(
            "the grammar allows no token of the vocabulary at this place; no answer can follow it"
        )
    return mask
