"""The one protocol that every backend implements; generation and servers know nothing else.

Does not know: tokenizer, sampling, files. Hidden states and logits cross this border as float32.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..limits import Limits
from ..prompt.patches import PatchedImage

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


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
            NumericError: a logit is not finite.
        """

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        """As `step`, but return the ids of the highest logits; of equal ones the lowest.

        An engine on a device chooses there, so that no logits have to leave it.

        Returns:
            Ids (N,), one for each entry of `rows`.

        Raises:
            CapacityError: a slot would grow over `limits.max_tokens`.
            NumericError: a logit is not finite.
        """

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of one slot to another."""
