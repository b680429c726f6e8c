"""What a run came to: percentiles, throughput, what was good enough, failures by kind."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runtime.errors import InputError, describe_problems

from ..measure.samples import Spread
from .run import Load, Sample

FORMAT = 1
MEASURES = ("time_to_first_token_s", "time_per_token_s", "total_s")
_SHORT = {"ttft": MEASURES[0], "token": MEASURES[1], "total": MEASURES[2]}
_MAX_LIMIT_S = 1e6
_LATE_S = 0.05
"""Requests that were sent later than this say as much of this machine as of the endpoint."""
GROUPS = ("all", "with images", "text alone")


def parse_limits(text: str | None) -> dict[str, float]:
    """Read limits such as `ttft=0.5,token=0.05,total=20`, in seconds.

    Raises:
        InputError: a name or a number is wrong, or a name comes twice; all are named at once.
    """
    found: dict[str, float] = {}
    problems: list[str] = []
    for part in text.split(",") if text else ():
        name, _, value = part.strip().partition("=")
        seconds = _seconds(value)
        if name not in _SHORT or seconds is None:
            expected = ", ".join(f"{one}=SECONDS" for one in _SHORT)
            problems.append(f"expected {expected}, found {part.strip()!r}")
        elif _SHORT[name] in found:
            problems.append(f"{name} comes twice")
        else:
            found[_SHORT[name]] = seconds
    if problems:
        raise InputError(describe_problems("limits", problems))
    return found


def _seconds(text: str) -> float | None:
    """Read a positive number that a clock may reach."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 < value <= _MAX_LIMIT_S else None


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Everything that one run measured."""

    endpoint: Mapping[str, str]
    load: Load
    max_new_tokens: int
    limits: Mapping[str, float]
    """Measure to the most seconds that are good enough."""
    samples: Sequence[Sample]
    """In the order in which they were due."""
    asked: Mapping[str, object] = field(default_factory=dict)
    """What else decides the figures, by name; JSON values."""

    @property
    def duration_s(self) -> float:
        """From the start to the last end."""
        return max(sample.end_s for sample in self.samples)

    def answered(self, group: str = "all") -> list[Sample]:
        """List the requests with a whole answer, of one of `GROUPS`."""
        wanted = {"all": (True, False), "with images": (True,), "text alone": (False,)}[group]
        return [
            one for one in self.samples if one.used is not None and (one.num_images > 0) in wanted
        ]

    def spread(self, measure: str, group: str = "all") -> Spread | None:
        """Reduce one measure; None where no request has it."""
        found = self.values(measure, group)
        return Spread.of(found) if found else None

    def values(self, measure: str, group: str = "all") -> list[float]:
        """List one measure of the answered requests that have it."""
        values = (getattr(one, measure) for one in self.answered(group))
        return [value for value in values if value is not None]

    @property
    def num_good(self) -> int:
        """Answered requests within all limits."""
        return sum(
            all(_is_within(one, name, most) for name, most in self.limits.items())
            for one in self.answered()
        )

    @property
    def late(self) -> dict[str, float]:
        """Requests that this machine sent late, and by how much the latest."""
        late = [one.sent_s - one.due_s for one in self.samples]
        return {"requests": sum(one > _LATE_S for one in late), "most_s": max(late)}

    @property
    def failures(self) -> dict[str, int]:
        """Failed requests by kind."""
        return dict(Counter(one.failure for one in self.samples if one.failure is not None))

    def tokens(self) -> dict[str, int]:
        """Add up what the endpoint said of its answers."""
        used = [one.used for one in self.samples if one.used is not None]
        return {
            "prompt": sum(one.prompt_tokens for one in used),
            "cached": sum(one.cached_tokens for one in used),
            "new": sum(one.new_tokens for one in used),
        }

    def fields(self) -> dict[str, Any]:
        """Name the figures; see docs/benchmarking.md for each."""
        answered, tokens = len(self.answered()), self.tokens()
        return {
            "format": FORMAT,
            "endpoint": dict(self.endpoint),
            "load": asdict(self.load) | {"max_new_tokens": self.max_new_tokens} | dict(self.asked),
            "requests": {"sent": len(self.samples), "answered": answered},
            "failures": self.failures,
            "late": self.late,
            "duration_s": self.duration_s,
            "requests_per_s": answered / self.duration_s,
            "tokens": tokens,
            "new_tokens_per_s": tokens["new"] / self.duration_s,
            "goodput": {
                "limits": dict(self.limits),
                "requests": self.num_good,
                "requests_per_s": self.num_good / self.duration_s,
            },
            "measures": {
                measure: {group: self._fields_of(measure, group) for group in GROUPS}
                for measure in MEASURES
            },
            "samples": [_sample_fields(one) for one in self.samples],
        }

    def _fields_of(self, measure: str, group: str) -> dict[str, Any] | None:
        spread = self.spread(measure, group)
        return None if spread is None else spread.fields()


def _is_within(sample: Sample, measure: str, most: float) -> bool:
    """Tell if a limit was kept; a measure that should be there and is not has not kept it."""
    found: float | None = getattr(sample, measure)
    if found is not None:
        return found <= most
    is_one_token = sample.used is not None and sample.used.new_tokens < 2
    return measure == "time_per_token_s" and is_one_token


def _sample_fields(one: Sample) -> dict[str, Any]:
    return {
        "due_s": one.due_s,
        "sent_s": one.sent_s,
        **{measure: getattr(one, measure) for measure in MEASURES},
        "images": one.num_images,
        "tokens": None if one.used is None else asdict(one.used),
        "failure": one.failure,
        "message": one.message,
    }
