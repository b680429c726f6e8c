"""What a scheduler counts, and the picture of it that anyone may take at any time."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Measure = Literal["queue_s", "time_to_first_token_s", "time_per_token_s", "total_s"]
"""`queue_s`: from submission to a slot. `time_to_first_token_s`: from submission, too.
`time_per_token_s`: between two tokens of a request. `total_s`: from submission to the end, however
it ended."""

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
    """Steps of the engine that raised since the last one that did not."""


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
    failures_in_a_row: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
