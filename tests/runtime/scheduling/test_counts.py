"""What is counted and measured: failures, places, time."""

import time

import pytest

from runtime.errors import NumericError
from runtime.prompt.patches import PatchedImage
from runtime.scheduling.errors import DeadlineError
from runtime.scheduling.options import Deadlines
from runtime.scheduling.scheduler import Scheduler
from runtime.scheduling.statistics import RECOVERY_S
from tests.runtime.byte_model import MEDIA, TOKENIZER, make_image
from tests.runtime.fake_engine import StepCall
from tests.runtime.scheduling.doubles import CHUNK, Drive, ask, make_memory_engine
from tests.runtime.scheduling.test_batch import is_decoding

PATIENCE_S = 60.0


def test_steps_of_one_kind_that_work_do_not_hide_that_another_kind_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("runtime.scheduling.statistics.monotonic", lambda: now)
    engine = make_memory_engine()
    drive = Drive(engine)

    def fail_to_decode(call: StepCall) -> None:
        if is_decoding(call):
            raise RuntimeError("planted")

    engine.before_step = fail_to_decode
    for n in range(3):
        drive.answer(ask(*range(n, n + CHUNK)))
    assert drive.counters.prefill_steps == 3
    assert drive.counters.failures.in_a_row() == 3
    now += RECOVERY_S - 1
    assert drive.counters.failures.in_a_row() == 3
    now += 1
    assert drive.counters.failures.in_a_row() == 0, "somebody may try"
    drive.answer(ask(*range(60, 60 + CHUNK)))
    assert drive.counters.failures.in_a_row() == 4
    engine.before_step = lambda call: None
    drive.answer(ask(*range(80, 80 + CHUNK)))
    assert drive.counters.failures.in_a_row() == 0


def test_an_encoder_that_fails_is_counted_and_an_image_that_it_refuses_is_not() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    fault: Exception = RuntimeError("planted")

    def fail(image: PatchedImage) -> None:
        raise fault

    engine.before_encode = fail
    for n in range(2):
        drive.answer(ask(5, MEDIA, 6, images=[make_image(2, 2, 0.1 * n)]))
        drive.answer(ask(7, 8, n))
    assert drive.counters.failures.in_a_row() == 2
    fault = NumericError("this image")
    drive.answer(ask(5, MEDIA, 6, images=[make_image(2, 2, 0.5)]))
    assert drive.counters.failures.in_a_row() == 2
    engine.before_encode = lambda image: None
    drive.answer(ask(5, MEDIA, 6, images=[make_image(2, 2, 0.7)]))
    assert drive.counters.failures.in_a_row() == 0


def test_every_request_is_counted_in_the_queue_or_in_a_slot_at_every_moment() -> None:
    engine = make_memory_engine(max_slots=2)
    seen: list[tuple[int, int]] = []

    def note(call: StepCall) -> None:
        stats = one.stats()
        left = stats.submitted - sum(stats.ended.values())
        seen.append((stats.num_queued + stats.num_running, left))

    engine.before_step = note
    with Scheduler(engine, TOKENIZER) as one:
        handles = [one.submit(ask(n, n + 1, max_new_tokens=4)) for n in range(12)]
        for handle in handles:
            handle.wait(PATIENCE_S)
    assert len(seen) > 12
    assert [both for both, _ in seen] == [left for _, left in seen]


def test_time_before_the_submission_counts_as_the_request_s_but_not_as_waiting() -> None:
    engine = make_memory_engine()
    measured: dict[str, float] = {}
    with Scheduler(engine, TOKENIZER, observe=lambda name, s: measured.update({name: s})) as one:
        ago = time.monotonic() - 50
        request = ask(1, 2, max_new_tokens=1)
        one.submit(request, arrived=ago, deadlines=Deadlines(queue_s=40)).wait(PATIENCE_S)
        assert measured["queue_s"] < 10
        assert 50 < measured["time_to_first_token_s"] < 60
        assert 50 < measured["total_s"] < 60
        late = one.submit(ask(1, 2), arrived=ago, deadlines=Deadlines(total_s=45))
        assert isinstance(late.wait(PATIENCE_S).error, DeadlineError)
