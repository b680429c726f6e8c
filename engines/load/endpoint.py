"""What every kind of endpoint implements, and what it is asked and answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from runtime.errors import InputError

from .asked import Question

MIN_TIMEOUT_S = 0.001
MAX_TIMEOUT_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What every request asks for.

    Raises:
        InputError: the timeout is out of its range.
    """

    max_new_tokens: int
    timeout_s: float
    """Until the last piece."""
    model: str | None = None
    """The first that the endpoint has, if left out."""
    api_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be waited for."""
        if not MIN_TIMEOUT_S <= self.timeout_s <= MAX_TIMEOUT_S:
            raise InputError(
                f"timeout: expected {MIN_TIMEOUT_S:g} to {MAX_TIMEOUT_S:g} seconds, "
                f"found {self.timeout_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A part of an answer, as it came."""

    num_tokens: int
    """As far as the endpoint tells; in OpenAI's dialect 1 for each part with text."""
    has_text: bool
    """Thinking included."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """Token counts of an answered request, as the endpoint says."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed again."""
    new_tokens: int


class RequestFailedError(Exception):
    """A request got no answer, or not all of it."""

    def __init__(self, kind: str, message: str) -> None:
        """Say why in one word, by which failures are counted, and in full."""
        super().__init__(message)
        self.kind = kind


class Endpoint(Protocol):
    """One server and model; `ask` may be called by many threads at once."""

    @property
    def description(self) -> dict[str, str]:
        """Name the address, its dialect, the model, and what its tokens are timed by."""

    def ask(self, question: Question, hear: Callable[[Heard], None]) -> Used:
        """Send one request and read its answer to the end.

        Args:
            question: what is asked.
            hear: called at each part that has text or tokens.

        Raises:
            RequestFailedError: there is no whole answer.
        """
