"""What a scheduler counts, and the picture of it that anyone may take at any time."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

Measure = Literal["queue_s", "time_to_first_token_s", "time_per_token_s", "total_s"]
"""`queue_s`: from submission to a slot. `time_to_first_token_s`: from the request's arrival, which
is its submission unless that says otherwise. `time_per_token_s`: between two tokens of a request.
`total_s`: from the arrival to the end, however it ended."""

RECOVERY_S = 30.0
"""So long after its last failure an engine counts as failing."""

Observer = Callable[[Measure, float], None]
"""Told every single measurement, in the scheduler's thread; for histograms."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """One moment of a scheduler. Counts with `num_` are of now, all others since the start."""

    num_queued: int
    num_running: int
    num_slots: int
    num_free_slots: int
    num_used_slots: int
    num_cached_tokens: int
    """In used slots, and in free ones that may be used again."""
    image_cache_bytes: int
    """What is kept of images now."""
    submitted: int
    refused: int
    """Submissions to a full queue."""
    ended: Mapping[str, int]
    """Requests by their finish reason."""
    errors: Mapping[str, int]
    """Of those that ended with an error, by its class; and `SlotsLost` for each failed check."""
    prompt_tokens: int
    """Of requests that began; reused ones included."""
    reused_tokens: int
    reusing_requests: int
    """Requests that found some of their prompt in a slot."""
    new_tokens: int
    images_encoded: int
    images_reused: int
    """Found among kept rows; images inside a reused prefix are in neither count."""
    decode_steps: int
    prefill_steps: int
    failures_in_a_row: int
    """Steps of one kind that raised since the last of its kind that did not, of the kind with the
    most; 0 when the last failure is half a minute old, so that somebody tries again."""


Step = Literal["encode", "prefill", "decode"]
"""What an engine does."""


class Failures:
    """Failed steps in a row, by their kind: one that works says nothing about another."""

    def __init__(self) -> None:
        """Start with none."""
        self._counts: Counter[Step] = Counter()
        self._latest: dict[Step, float] = {}

    def add(self, step: Step) -> None:
        """Count a step that raised."""
        self._latest[step] = monotonic()
        self._counts[step] += 1

    def end(self, step: Step) -> None:
        """Begin anew behind a step that did not raise."""
        self._counts[step] = 0

    def in_a_row(self) -> int:
        """Give the count of the kind with the most, without those that failed long ago.

        Who is told that nothing works sends nothing, and without a request nothing is tried.
        """
        long_ago = monotonic() - RECOVERY_S
        return max(
            (self._counts[step] for step, when in [*self._latest.items()] if when > long_ago),
            default=0,
        )


@dataclass(kw_only=True)
class Counters:
    """The counts since the start; written by the scheduler's thread alone."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    reusing_requests: int = 0
    new_tokens: int = 0
    images_encoded: int = 0
    images_reused: int = 0
    decode_steps: int = 0
    prefill_steps: int = 0
    failures: Failures = field(default_factory=Failures)
    ended: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
