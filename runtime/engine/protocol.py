"""The one protocol that every backend implements; generation and servers know nothing else.

Does not know: tokenizer, sampling, files. Hidden states and logits cross this border as float32.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import NumericError
from ..limits import Limits
from ..prompt.patches import PatchedImage

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class NonFiniteRowsError(NumericError):
    """Some rows of a step are not finite; the step itself is done, and its other rows are good."""

    def __init__(self, message: str, *, found: NDArray[Any], is_finite: NDArray[np.bool_]) -> None:
        """Keep what the step found.

        Args:
            message: for the user.
            found: what the step would have returned, (N, ...).
            is_finite: which of its rows are good, (N,).
        """
        super().__init__(message)
        self.found = found
        self.is_finite = is_finite


class Engine(Protocol):
    """Runs the model's graphs and owns the latent cache: `max_slots` slots of `max_tokens`."""

    @property
    def limits(self) -> Limits:
        """The sizes this engine was built for."""

    def encode(self, image: PatchedImage) -> FloatArray:
        """Turn one image into its rows of the prompt, (M, C).

        Raises:
            NumericError: the encoder produced a non-finite value.
        """

    def embed(self, ids: IntArray) -> FloatArray:
        """Look up token ids (S,) in the embedding table, (S, C)."""

    def step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        """Append S tokens to each of B slots and return the logits of chosen tokens.

        Args:
            slots: B different slots.
            hidden: embedded tokens (B, S, C).
            lengths: tokens already in each slot, (B,); the new ones are written behind them.
            rows: which tokens need logits, as indices into the flattened (B * S); may be empty.

        Returns:
            Logits (N, V), one row for each entry of `rows`.

        Raises:
            CapacityError: a slot would grow over `limits.max_tokens`.
            NonFiniteRowsError: a logit is not finite; every slot has its new tokens all the same.
            NumericError: without rows, where an engine keeps what is not finite from later texts:
                the last token of a slot is not.
        """

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        """As `step`, but return the ids of the highest logits; of equal ones the lowest.

        An engine on a device chooses there, so that no logits have to leave it.

        Returns:
            Ids (N,), one for each entry of `rows`.

        Raises:
            CapacityError, NonFiniteRowsError, NumericError: as `step`.
        """

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of one slot to another."""
