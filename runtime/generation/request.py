"""One request: a prompt and how to answer it, and what it came to."""

import threading
from dataclasses import dataclass

from ..prompt.encoder import Prompt
from .constraint import Grammar
from .sampling import Sampling
from .stopping import FinishReason, GenerationLimits


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    """Image tokens included."""
    image_tokens: int
    reused_tokens: int
    """Prompt tokens that a slot held already, from an earlier request; images included."""
    new_tokens: int
    """All generated ids: thinking, markers, answer, forced tokens, the stop id."""
    thinking_tokens: int
    """Generated behind `◁think▷`, up to and with the token that completes `◁/think▷`."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of one request went; 0 for a phase that was not reached."""

    queued_s: float
    """Before it got a slot; 0 for a request that takes one itself."""
    encode_s: float
    """Images."""
    prefill_s: float
    """The prompt: embedding table and decoder."""
    time_to_first_token_s: float
    """From the start of the first of these until the first token is chosen."""
    decode_s: float
    """All tokens after the first, without the time that a consumer takes between pieces."""
    decode_tokens_per_s: float
    """Tokens after the first, per second of `decode_s`; 0 without any."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a request came to."""

    finish_reason: FinishReason
    ids: tuple[int, ...]
    """Every generated id as it was chosen or forced, the stop id included."""
    cached_tokens: int
    """Tokens in the slot: the prompt and all of `ids` but those that no step followed."""
    usage: Usage
    timings: Timings


class Request:
    """One prompt and how to answer it; carries the result when the generation has ended."""

    def __init__(
        self,
        prompt: Prompt,
        *,
        stop_ids: frozenset[int],
        sampling: Sampling | None = None,
        limits: GenerationLimits | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        """Describe a request; nothing is computed.

        Args:
            prompt: ids and images.
            stop_ids: ids that end the answer and never become text.
            sampling: greedy if left out.
            limits: the model's own stop ids and the slot alone, if left out.
            grammar: what the answer has to be; anything, if left out.
        """
        self.prompt = prompt
        self.stop_ids = stop_ids
        self.sampling = sampling or Sampling.greedy()
        self.limits = limits or GenerationLimits()
        self.grammar = grammar
        self.result: Result | None = None
        """None until the generator has ended, and for good if it ended with an error."""
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask for the end, from any thread; the step that runs now is finished first."""
        self._cancelled.set()
