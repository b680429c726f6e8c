"""The scheduler's figures as metrics of the server."""

from dataclasses import replace

import pytest

from runtime.generation.request import Request
from runtime.scheduling.scheduler import Scheduler
from runtime.triton import metrics
from runtime.triton.metrics import Measured, Metrics, with_unsubmitted
from tests.runtime.byte_model import TOKENIZER
from tests.runtime.scheduling.doubles import ask, make_memory_engine
from tests.runtime.triton.backend import make_backend

LABEL = frozenset({("model", "kimi_vl")})


@pytest.fixture(autouse=True)
def _every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_EVERY_S", 0.0)


def test_metrics_follow_the_scheduler_and_counters_never_fall() -> None:
    backend, measured = make_backend(), Measured()
    written = Metrics(backend, "kimi_vl")
    requests: list[Request] = [ask(1, 2, 3), ask(1, 2, 4)]
    with Scheduler(make_memory_engine(), TOKENIZER, observe=measured.observe) as scheduler:
        written.update(scheduler.stats(), measured)
        scheduler.submit(requests[0]).wait(10)
        halfway = replace(scheduler.stats(), new_tokens=1)
        scheduler.submit(requests[1]).wait(10)
        assert scheduler.drain(10)
        stats = scheduler.stats()
        assert 0 < halfway.new_tokens < stats.new_tokens
        written.update(halfway, measured)
        for _ in range(2):
            written.update(stats, measured)
    found = {
        (name, *(value for key, value in labels if key != "model")): metric.value
        for (name, labels), metric in backend.MetricFamily.made.items()
    }
    tokens = backend.MetricFamily.made[("kimivl_new_tokens_total", LABEL)]
    assert tokens.increments == [1, stats.new_tokens - 1]
    assert found[("kimivl_submitted_total",)] == 2
    assert found[("kimivl_new_tokens_total",)] == stats.new_tokens > 0
    assert found[("kimivl_num_free_slots",)] == stats.num_slots
    assert found[("kimivl_queue_seconds_count",)] == 2
    assert found[("kimivl_total_seconds_sum",)] == pytest.approx(measured.sums["total_s"].seconds)
    assert sum(value for key, value in found.items() if key[0] == "kimivl_ended_total") == 2


def test_counters_are_there_before_anything_happens_and_errors_have_their_class() -> None:
    backend, measured = make_backend(), Measured()
    with Scheduler(make_memory_engine(), TOKENIZER) as scheduler:
        stats = scheduler.stats()
    Metrics(backend, "one").update(replace(stats, errors={"InputError": 3}), measured)
    made = backend.MetricFamily.made
    label = ("model", "one")
    assert made[("kimivl_new_tokens_total", frozenset({label}))].value == 0
    kind = frozenset({label, ("kind", "InputError")})
    assert made[("kimivl_errors_total", kind)].value == 3


def test_requests_that_the_scheduler_never_had_are_counted_too() -> None:
    with Scheduler(make_memory_engine(), TOKENIZER) as scheduler:
        stats = replace(scheduler.stats(), refused=3, errors={"DeadlineError": 1})
    counted = {"QueueFullError": 5, "InputError": 2, "DeadlineError": 1}
    found = with_unsubmitted(stats, counted)
    assert found.refused == 5  # the three among them
    assert found.errors == {"DeadlineError": 2, "InputError": 2}
    assert counted["QueueFullError"] == 5
