"""The conversations of one calibration: some are observed, others judge."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import InputError

from .examples import Example
from .samples import DEFAULT_PROMPT, content_hash, draw, load_conversations

DEFAULT_MAX_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which conversations are observed, and which are judged."""

    data: str
    """A built-in set, a JSONL file, or a folder of images."""
    held_out: str | None = None
    """The same; no conversation may be in both. None: a fifth of `data` is kept for it."""
    prompt: str = DEFAULT_PROMPT
    """What images of a folder are asked."""
    max_samples: int | None = None
    max_held_out: int = 100
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Both sets, drawn and read."""

    observed: Sequence[Example]
    held_out: Sequence[Example]

    @classmethod
    def load(cls, options: DataOptions) -> "Conversations":
        """Read and shuffle; refuse sets that overlap.

        Raises:
            InputError: a set cannot be used, or both hold the same conversation.
        """
        observed = draw(load_conversations(options.data, options.prompt), None, options.seed)
        if options.held_out is None:
            count = min(options.max_held_out, len(observed) // 5)
            held_out, observed = observed[:count], observed[count:]
        else:
            held_out = load_conversations(options.held_out, options.prompt)
            held_out = draw(held_out, options.max_held_out, options.seed)
        observed = observed[: options.max_samples]
        if not observed or not held_out:
            raise InputError(
                f"{options.data}: {len(observed) + len(held_out)} conversations are too few; "
                "give at least 5, or a set of its own with --held-out"
            )
        both = {content_hash([one]) for one in observed} & {content_hash([one]) for one in held_out}
        if both:
            raise InputError(
                f"{len(both)} conversations are both observed and held out; "
                "what is observed cannot judge"
            )
        return cls(observed=observed, held_out=held_out)
