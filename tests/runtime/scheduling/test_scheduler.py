"""The thread: submission, queue, deadlines, cancelling, faults, drain and close."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from runtime.errors import CapacityError, InputError
from runtime.generation.channels import Piece
from runtime.generation.request import Request
from runtime.prompt.patches import PatchedImage
from runtime.scheduling.errors import (
    ClosedError,
    DeadlineError,
    EngineFailedError,
    QueueFullError,
    SchedulerError,
)
from runtime.scheduling.handle import End, Event, Handle
from runtime.scheduling.options import Deadlines, SchedulerOptions
from runtime.scheduling.scheduler import Scheduler
from runtime.scheduling.statistics import Stats
from tests.runtime.byte_model import MEDIA, TOKENIZER, make_image
from tests.runtime.fake_engine import StepCall
from tests.runtime.scheduling.doubles import (
    Gate,
    MemoryEngine,
    ask,
    ids_said,
    make_memory_engine,
    pieces_of,
    say_alone,
)

PATIENCE_S = 60.0


@pytest.fixture
def engine() -> MemoryEngine:
    return make_memory_engine(max_slots=2)


@pytest.fixture
def scheduler(engine: MemoryEngine) -> Iterator[Scheduler]:
    with Scheduler(engine, TOKENIZER, options=SchedulerOptions(max_queued=3)) as one:
        yield one


def idle_stats(scheduler: Scheduler) -> Stats:
    """The counts when nothing runs."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        stats = scheduler.stats()
        if stats.num_running == stats.num_queued == 0:
            return stats
        time.sleep(0.005)
    raise AssertionError("it never came to rest")


def test_requests_beyond_the_slots_wait_their_turn_and_are_answered_in_order(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    gate = Gate(engine)
    ends: list[int] = []

    def listener(place: int) -> "Listen":
        return Listen(lambda: ends.append(place))

    requests = [ask(*range(9 * n, 9 * n + 4), max_new_tokens=3) for n in range(5)]
    handles = [scheduler.submit(requests[0], listener=listener(0))]
    gate.wait_for_step()
    handles += [
        scheduler.submit(request, listener=listener(place))
        for place, request in enumerate(requests[1:4], start=1)
    ]
    gate.open()
    for handle in handles:
        handle.wait(PATIENCE_S)
    assert ends == sorted(ends)
    assert [ids_said(one) for one in requests[:4]] == [say_alone(one) for one in requests[:4]]


class Listen:
    def __init__(self, at_end: Callable[[], None]) -> None:
        self.at_end = at_end

    def __call__(self, event: Event) -> None:
        if isinstance(event, End):
            self.at_end()


def test_a_full_queue_refuses_and_says_when_to_come_again(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    gate = Gate(engine)
    running = scheduler.submit(ask(1))
    gate.wait_for_step()
    waiting = [scheduler.submit(ask(n)) for n in range(2, 5)]
    with pytest.raises(QueueFullError, match=r"3 requests are waiting.* again in 1 s") as caught:
        scheduler.submit(ask(9))
    assert caught.value.retry_after_s == 1.0
    scheduler._batch.mean_held_s = 30.0  # of two slots one gets free every 15 s
    with pytest.raises(QueueFullError, match=r"try again in 15 s"):
        scheduler.submit(ask(9))
    waiting[1].cancel()  # makes room at once
    waiting.append(scheduler.submit(ask(7)))
    gate.open()
    assert [one.wait(PATIENCE_S).reason for one in waiting].count("cancelled") == 1
    running.wait(PATIENCE_S)
    stats = idle_stats(scheduler)
    assert (stats.submitted, stats.refused) == (5, 2)


def test_what_does_not_fit_is_refused_before_it_waits(scheduler: Scheduler) -> None:
    with pytest.raises(CapacityError, match="prompt: 96 tokens"):
        scheduler.submit(ask(*[1] * 96))
    with pytest.raises(InputError, match="expected 0 placeholder"):
        scheduler.submit(ask(1, MEDIA))
    done = ask(1, 2)
    scheduler.submit(done).wait(PATIENCE_S)
    with pytest.raises(ValueError, match="make a new one"):
        scheduler.submit(done)
    assert idle_stats(scheduler).submitted == 1


def test_events_are_read_while_the_request_runs(engine: MemoryEngine, scheduler: Scheduler) -> None:
    gate = Gate(engine)
    handle = scheduler.submit(ask(1, 2, max_new_tokens=4))
    for _ in range(3):
        gate.pass_one()
    events = handle.events()
    seen: list[Piece] = []
    while sum(len(piece.token_ids) for piece in seen) < 3:
        event = next(events)
        assert isinstance(event, Piece)
        seen.append(event)
    assert handle.end is None
    with pytest.raises(TimeoutError, match=r"no end within 0\.01 s"):
        handle.wait(0.01)
    gate.open()
    assert isinstance(list(events)[-1], End)


def test_a_reader_that_never_reads_holds_up_nobody(scheduler: Scheduler) -> None:
    unread = scheduler.submit(ask(1, 2, max_new_tokens=60))
    for n in range(6):
        request = ask(n, 9)
        assert scheduler.submit(request).wait(PATIENCE_S).error is None
    unread.wait(PATIENCE_S)
    ids = tuple(one for piece in unread.pieces() for one in piece.token_ids)
    assert ids == ids_said(unread.request) == say_alone(unread.request)


def test_a_request_cancelled_in_the_queue_never_runs(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    gate = Gate(engine)
    running = [scheduler.submit(ask(n, max_new_tokens=2)) for n in (1, 2)]
    gate.wait_for_step()
    waiting = scheduler.submit(ask(77))
    waiting.cancel()
    gate.open()
    end = waiting.wait(PATIENCE_S)
    assert (end.reason, end.result, end.error) == ("cancelled", None, None)
    for one in running:
        one.wait(PATIENCE_S)
    assert 77 not in [one for slot in range(2) for one in engine.ids_in(slot)]


def test_a_request_that_waits_too_long_is_told_so(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    gate = Gate(engine)
    running = [scheduler.submit(ask(n, max_new_tokens=3)) for n in (1, 2)]
    gate.wait_for_step()
    waiting = scheduler.submit(ask(3), deadlines=Deadlines(queue_s=0.02))
    time.sleep(0.03)
    gate.open()
    error = waiting.wait(PATIENCE_S).error
    assert isinstance(error, DeadlineError)
    assert "waited 0.02 s for a slot" in str(error)
    with pytest.raises(DeadlineError):
        list(waiting.pieces())
    assert [one.wait(PATIENCE_S).error for one in running] == [None, None]
    assert idle_stats(scheduler).errors == {"DeadlineError": 1}


def test_the_service_goes_on_behind_a_mistake_of_its_own(
    engine: MemoryEngine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(engine)
    running = scheduler.submit(ask(1, 2, 3))
    gate.wait_for_step()
    waiting = [scheduler.submit(ask(n)) for n in (4, 5)]
    with monkeypatch.context() as patch:
        patch.setattr(scheduler._batch, "_decode", lambda jobs: 1 / 0)
        gate.open()
        errors = [one.wait(PATIENCE_S).error for one in (running, *waiting)]
    assert all(isinstance(error, SchedulerError) for error in errors)
    assert isinstance(errors[0].__cause__ if errors[0] else None, ZeroDivisionError)
    again = ask(1, 2, 3)
    assert scheduler.submit(again).wait(PATIENCE_S).error is None
    assert ids_said(again) == say_alone(again)


def test_a_lost_slot_is_counted_when_nothing_runs(scheduler: Scheduler) -> None:
    scheduler._batch.slots._free.popitem()
    scheduler.submit(ask(1)).wait(PATIENCE_S)
    assert idle_stats(scheduler).errors["SlotsLost"] >= 1


def test_an_observer_that_raises_ends_nothing(engine: MemoryEngine) -> None:
    def observe(measure: str, seconds: float) -> None:
        raise ValueError(measure)

    with Scheduler(engine, TOKENIZER, observe=observe) as scheduler:
        request = ask(1, 2)
        assert scheduler.submit(request).wait(PATIENCE_S).error is None
        stats = idle_stats(scheduler)
    assert ids_said(request) == say_alone(request)
    assert stats.errors == {"ObserverRaised": len(ids_said(request)) + 2}


def test_draining_finishes_what_there_is_and_takes_nothing_new(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    gate = Gate(engine)
    requests = [ask(n, max_new_tokens=4) for n in range(4)]
    first = scheduler.submit(requests[0])
    gate.wait_for_step()
    handles = [first, *(scheduler.submit(request) for request in requests[1:])]
    assert not scheduler.drain(0.02)
    with pytest.raises(ClosedError, match="shutting down"):
        scheduler.submit(ask(9))
    gate.open()
    assert scheduler.drain(PATIENCE_S)
    assert [one.end.error if one.end else "none" for one in handles] == [None] * 4
    assert [ids_said(one) for one in requests] == [say_alone(one) for one in requests]


def test_closing_ends_everything_with_an_error(engine: MemoryEngine) -> None:
    scheduler = Scheduler(engine, TOKENIZER)
    gate = Gate(engine)
    handles = [scheduler.submit(ask(n, max_new_tokens=50)) for n in range(4)]
    gate.wait_for_step()
    opener = threading.Timer(0.05, gate.open)
    opener.start()
    scheduler.close()
    opener.join()
    ends = [handle.end for handle in handles]
    assert all(end is not None and isinstance(end.error, ClosedError) for end in ends)
    assert not scheduler._thread.is_alive()
    stats = scheduler.stats()
    assert (stats.num_free_slots, stats.num_running, stats.num_queued) == (2, 0, 0)
    scheduler.close()  # again does nothing
    with pytest.raises(ClosedError):
        scheduler.submit(ask(1))


def test_a_listener_may_close_the_scheduler(engine: MemoryEngine) -> None:
    scheduler = Scheduler(engine, TOKENIZER)
    handle = scheduler.submit(ask(1, 2), listener=Listen(scheduler.close))
    handle.wait(PATIENCE_S)
    scheduler._thread.join(PATIENCE_S)
    assert not scheduler._thread.is_alive()


def test_a_listener_may_cancel_its_request_and_submit_another(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    handles: list[Handle] = []

    def listen(event: Event) -> None:
        if isinstance(event, Piece) and len(handles) == 1:
            handles[0].cancel()
            handles.append(scheduler.submit(ask(4, 5, 6)))

    gate = Gate(engine)
    handles.append(scheduler.submit(ask(1, 2, 3, max_new_tokens=50), listener=listen))
    gate.open()
    assert handles[0].wait(PATIENCE_S).reason == "cancelled"
    assert handles[1].wait(PATIENCE_S).reason in {"stop", "length"}


def test_events_reach_a_loop_of_asyncio(scheduler: Scheduler) -> None:
    async def answer(request: Request) -> list[Event]:
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        scheduler.submit(
            request, listener=lambda event: loop.call_soon_threadsafe(events.put_nowait, event)
        )
        found = [await events.get()]
        while not isinstance(found[-1], End):
            found.append(await events.get())
        return found

    async def answer_all(requests: list[Request]) -> list[list[Event]]:
        return await asyncio.gather(*map(answer, requests))

    requests = [ask(n, n + 1) for n in range(3)]
    for request, events in zip(requests, asyncio.run(answer_all(requests)), strict=True):
        ids = [one for event in events if isinstance(event, Piece) for one in event.token_ids]
        assert tuple(ids) == ids_said(request) == say_alone(request)


def test_an_engine_that_never_answers_again_fails_every_request_and_says_so(
    engine: MemoryEngine, scheduler: Scheduler
) -> None:
    def fail(call: StepCall) -> None:
        raise RuntimeError("device lost")

    engine.before_step = fail
    for n in range(4):
        assert isinstance(scheduler.submit(ask(n)).wait(PATIENCE_S).error, EngineFailedError)
    assert idle_stats(scheduler).failures_in_a_row == 4


@pytest.mark.parametrize("seed", range(6))
def test_no_slot_is_lost_and_no_answer_changed_whatever_is_killed(seed: int) -> None:
    """Random requests from three senders, cancelled, overdue, poisoned and failing at random."""
    engine = make_memory_engine(max_slots=3)
    make_trouble(engine, seed)
    results: list[Handle] = []
    options = SchedulerOptions(max_queued=6, image_cache_bytes=64)
    with Scheduler(engine, TOKENIZER, options=options) as scheduler:
        senders = [
            threading.Thread(target=_send, args=(scheduler, results, 10 * seed + number))
            for number in range(3)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        ends = [handle.wait(PATIENCE_S) for handle in results]
        stats = idle_stats(scheduler)
    assert stats.num_free_slots + stats.num_used_slots == stats.num_slots == 3
    assert stats.num_used_slots == 0
    assert "SlotsLost" not in stats.errors
    assert "SchedulerError" not in stats.errors
    assert sum(stats.ended.values()) == stats.submitted == len(results) == 75
    whole = [
        handle.request
        for handle, end in zip(results, ends, strict=True)
        if end.reason in {"stop", "length"}
    ]
    assert len(whole) > 15
    assert [ids_said(one) for one in whole] == [say_alone(one) for one in whole]
    for handle, end in zip(results, ends, strict=True):
        said = tuple(one for piece in pieces_of(handle) for one in piece.token_ids)
        assert said == (end.result.ids if end.result else ())


def make_trouble(engine: MemoryEngine, seed: int) -> None:
    """Let an engine fail now and then."""
    chance = np.random.default_rng(seed)

    def trouble(call: StepCall) -> None:
        kind = chance.random()
        if kind < 0.01:
            raise RuntimeError("a step failed")
        if kind < 0.03:
            engine.poisoned.add(int(chance.choice(call.slots)))
        if kind > 0.9:
            time.sleep(0.001)

    def no_image(image: PatchedImage) -> None:
        if chance.random() < 0.1:
            raise OSError("no image")

    engine.before_step, engine.before_encode = trouble, no_image


def _send(scheduler: Scheduler, results: list[Handle], seed: int) -> None:
    chance = np.random.default_rng(seed)
    for _ in range(25):
        ids = chance.integers(0, 5, chance.integers(1, 30)).tolist()
        images = []
        if chance.random() < 0.3:
            ids += [MEDIA, 3]
            images = [make_image(2, 2, float(chance.integers(3)))]
        request = ask(*ids, images=images, max_new_tokens=int(chance.integers(1, 20)))
        total_s = 0.02 if chance.random() < 0.1 else None
        handle = None
        while handle is None:
            try:
                handle = scheduler.submit(request, deadlines=Deadlines(total_s=total_s))
            except QueueFullError:
                time.sleep(0.005)
        results.append(handle)
        if chance.random() < 0.2:
            time.sleep(float(chance.random()) * 0.01)
            handle.cancel()
