"""Whose prompt goes on: the oldest one, or the one that needs least.

The oldest alone would let a short question wait for a long document; the shortest alone would let
a document wait for ever. They take turns: the oldest gets at least every second chunk, so that no
prompt takes longer than twice its own chunks after it has become the oldest, and of prompts of one
length the first is answered first.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """A prompt that is not wholly in its slot."""

    @property
    def num_left(self) -> int:
        """Tokens that are missing."""


_Waiting = TypeVar("_Waiting", bound=Waiting)


class PrefillTurns:
    """Chooses, chunk by chunk."""

    def __init__(self) -> None:
        """Begin with the oldest."""
        self._is_for_oldest = True

    def choose(self, prompts: Sequence[_Waiting]) -> _Waiting:
        """Choose one of some prompts, at least one, oldest first."""
        oldest, shortest = prompts[0], min(prompts, key=lambda prompt: prompt.num_left)
        if shortest is oldest:
            return oldest
        chosen = oldest if self._is_for_oldest else shortest
        self._is_for_oldest = not self._is_for_oldest
        return chosen
