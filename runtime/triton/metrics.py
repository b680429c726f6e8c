"""Figures of the scheduler among the server's own, at its /metrics."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from types import ModuleType
from typing import Any

from ..scheduling.errors import QueueFullError
from ..scheduling.statistics import Measure, Stats

_EVERY_S = 0.5

_GAUGES = {
    "num_queued": "Requests that wait for a slot.",
    "num_running": "Requests that have a slot.",
    "num_slots": "Slots of the engine.",
    "num_free_slots": "Slots that no request has.",
    "num_used_slots": "Slots that a request has.",
    "num_cached_tokens": "Tokens in the cache, in use or ready to be used again.",
    "image_cache_bytes": "What is kept of images.",
    "failures_in_a_row": "Steps of one kind that failed one after the other, of late.",
}
_COUNTERS = {
    "submitted": "Requests that were queued.",
    "refused": "Requests that a full queue refused.",
    "prompt_tokens": "Tokens of prompts, reused ones included.",
    "reused_tokens": "Tokens of prompts that were in a slot already.",
    "reusing_requests": "Requests that found some of their prompt in a slot.",
    "new_tokens": "Tokens that were generated.",
    "images_encoded": "Images that went through the encoder.",
    "images_reused": "Images whose rows were kept.",
    "decode_steps": "Steps that decoded.",
    "prefill_steps": "Steps that prefilled.",
}
_MEASURES: dict[Measure, str] = {
    "queue_s": "queue",
    "time_to_first_token_s": "time_to_first_token",
    "time_per_token_s": "time_per_token",
    "total_s": "total",
}


@dataclass(kw_only=True)
class _Sum:
    seconds: float = 0.0
    count: int = 0


@dataclass(kw_only=True)
class Measured:
    """Sums of the scheduler's measurements; its `observe` is called in the scheduler's thread."""

    sums: dict[Measure, _Sum] = field(default_factory=lambda: {one: _Sum() for one in _MEASURES})
    lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, measure: Measure, seconds: float) -> None:
        """Add one measurement."""
        with self.lock:
            self.sums[measure].seconds += seconds
            self.sums[measure].count += 1

    def totals(self) -> dict[str, float]:
        """Give each sum by the name of its metric."""
        with self.lock:
            return {
                name: value
                for measure, one in self.sums.items()
                for name, value in (
                    (f"{_MEASURES[measure]}_seconds_sum", one.seconds),
                    (f"{_MEASURES[measure]}_seconds_count", float(one.count)),
                )
            }


def with_unsubmitted(stats: Stats, errors: Mapping[str, int]) -> Stats:
    """Add what ended requests before the scheduler had them.

    Args:
        stats: of the scheduler.
        errors: by class; a full queue's are all that were refused, the scheduler's among them.
    """
    others = Counter(errors)
    refused = others.pop(QueueFullError.__name__, 0)
    return replace(stats, refused=refused, errors=Counter(stats.errors) + others)


class Metrics:
    """Keeps the server's metrics at the scheduler's figures; used by one thread."""

    def __init__(self, backend: ModuleType, model: str) -> None:
        """Declare all metrics.

        Args:
            backend: the module `triton_python_backend_utils`.
            model: the model's name, the metrics' label.
        """
        self._backend, self._labels = backend, {"model": model}
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._written: dict[tuple[str, str], float] = {}
        self._last = 0.0

    def update(self, stats: Stats, measured: Measured) -> None:
        """Write the figures, unless it was done a moment ago."""
        if monotonic() - self._last < _EVERY_S:
            return
        self._last = monotonic()
        for name, text in _GAUGES.items():
            self._set_to(name, text, float(getattr(stats, name)))
        for name, text in _COUNTERS.items():
            self._raise_to(f"{name}_total", text, float(getattr(stats, name)))
        for reason, count in stats.ended.items():
            self._raise_to("ended_total", "Requests by how they ended.", count, reason=reason)
        for kind, count in stats.errors.items():
            self._raise_to("errors_total", "Errors by class.", count, kind=kind)
        for name, value in measured.totals().items():
            text = "Seconds in all." if name.endswith("sum") else "Measurements in all."
            self._raise_to(name, text, value)

    def _set_to(self, name: str, text: str, value: float) -> None:
        """Write a gauge that has changed: each writing waits for the server."""
        metric, key = self._metric(name, text, is_counter=False), (name, "")
        if value != self._written.get(key):
            metric.set(value)
            self._written[key] = value

    def _raise_to(self, name: str, text: str, value: float, **labels: str) -> None:
        metric, key = self._metric(name, text, is_counter=True, **labels), (name, str(labels))
        if value > self._written.get(key, 0.0):
            metric.increment(value - self._written.get(key, 0.0))
            self._written[key] = value

    def _metric(self, name: str, text: str, *, is_counter: bool, **labels: str) -> Any:  # noqa: ANN401
        key = (name, str(labels))
        if key not in self._metrics:
            families = self._backend.MetricFamily
            if name not in self._families:
                kind = families.COUNTER if is_counter else families.GAUGE
                self._families[name] = families(name=f"kimivl_{name}", description=text, kind=kind)
            self._metrics[key] = self._families[name].Metric(labels={**self._labels, **labels})
        return self._metrics[key]
