"""What Prometheus is told.

Counts of the scheduler are read from its snapshot when somebody asks; single measurements are put
into histograms as they come, in the scheduler's thread.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..scheduling.statistics import Measure, Stats

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_HISTOGRAMS: dict[Measure, tuple[str, str, tuple[float, ...]]] = {
    "queue_s": ("kimivl_queue_seconds", "From submission to a slot.", _SECONDS),
    "time_to_first_token_s": (
        "kimivl_time_to_first_token_seconds",
        "From the arrival of a request, its body and pictures included, to the first token.",
        _SECONDS,
    ),
    "time_per_token_s": (
        "kimivl_time_per_output_token_seconds",
        "Between two tokens of a request.",
        _TOKEN_SECONDS,
    ),
    "total_s": (
        "kimivl_request_seconds",
        "From the arrival of a submitted request to its end, however it ended.",
        _SECONDS,
    ),
}


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = CollectorRegistry()
        self._histograms = {
            measure: Histogram(name, about, buckets=buckets, registry=self._registry)
            for measure, (name, about, buckets) in _HISTOGRAMS.items()
        }
        self._requests = Counter(
            "kimivl_http_requests",
            "Answers over HTTP.",
            ["path", "status"],
            registry=self._registry,
        )
        self._errors = Counter(
            "kimivl_http_errors",
            "Error answers over HTTP, by the code that clients are told.",
            ["code"],
            registry=self._registry,
        )

    def observe(self, measure: Measure, seconds: float) -> None:
        """Take a measurement."""
        self._histograms[measure].observe(seconds)

    def count_answer(self, path: str, status: int, error: str | None) -> None:
        """Count an answer; `path` is one of the server's own, so that their number is bounded."""
        self._requests.labels(path=path, status=str(status)).inc()
        if error is not None:
            self._errors.labels(code=error).inc()

    def watch(self, read_stats: Callable[[], Stats]) -> None:
        """Tell a scheduler's counts too."""
        self._registry.register(_SchedulerCollector(read_stats))

    def watch_preparing(self, count: Callable[[], int]) -> None:
        """Tell how many requests are read and prepared, too."""
        Gauge(
            "kimivl_requests_preparing",
            "Requests whose body is read, or made a prompt of.",
            registry=self._registry,
        ).set_function(count)

    def text(self) -> bytes:
        """Write everything in Prometheus' form."""
        return generate_latest(self._registry)


class _SchedulerCollector(Collector):
    """Makes metrics of a snapshot."""

    def __init__(self, read_stats: Callable[[], Stats]) -> None:
        self._read = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read()
        yield _gauge("kimivl_requests_waiting", "Requests without a slot.", stats.num_queued)
        yield _gauge("kimivl_requests_running", "Requests with a slot.", stats.num_running)
        slots = GaugeMetricFamily("kimivl_slots", "Slots by state.", labels=["state"])
        slots.add_metric(["free"], stats.num_free_slots)
        slots.add_metric(["used"], stats.num_used_slots)
        yield slots
        yield _gauge(
            "kimivl_cache_tokens",
            "Tokens in slots that are in use or kept.",
            stats.num_cached_tokens,
        )
        yield _gauge("kimivl_image_cache_bytes", "Rows of images kept.", stats.image_cache_bytes)
        yield _gauge(
            "kimivl_engine_failures_in_a_row",
            "Steps of one kind that failed since the last good one; 0 half a minute later.",
            stats.failures_in_a_row,
        )
        for name, about, value in _counts(stats):
            yield CounterMetricFamily(name, about, value=value)
        yield _labelled("kimivl_requests", "Requests by their end.", "reason", stats.ended)
        yield _labelled("kimivl_errors", "Failed requests by class.", "kind", stats.errors)


def _counts(stats: Stats) -> tuple[tuple[str, str, int], ...]:
    return (
        ("kimivl_submitted", "Requests accepted.", stats.submitted),
        ("kimivl_prompt_tokens", "Tokens of prompts, reused ones too.", stats.prompt_tokens),
        ("kimivl_prefix_hit_tokens", "Prompt tokens found in slots.", stats.reused_tokens),
        ("kimivl_prefix_hit_requests", "Requests that found some.", stats.reusing_requests),
        ("kimivl_output_tokens", "Tokens chosen.", stats.new_tokens),
        ("kimivl_images_encoded", "Images through the encoder.", stats.images_encoded),
        ("kimivl_image_hits", "Images whose rows were kept.", stats.images_reused),
        ("kimivl_decode_steps", "Steps of decoding.", stats.decode_steps),
        ("kimivl_prefill_steps", "Chunks of prompts.", stats.prefill_steps),
    )


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _labelled(name: str, about: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=[label])
    for key, count in counts.items():
        family.add_metric([key], count)
    return family
