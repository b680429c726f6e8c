"""One turn after the other: who joins, who leaves, in which order, and what a failure ends."""

from itertools import pairwise

import numpy as np
import pytest

from runtime.errors import NumericError
from runtime.generation.channels import Piece
from runtime.generation.constraint import ConstraintError
from runtime.generation.sampling import Sampling
from runtime.prompt.patches import PatchedImage
from runtime.scheduling.errors import DeadlineError, EngineFailedError, HandlingError
from runtime.scheduling.handle import Event
from runtime.scheduling.options import Deadlines, SchedulerOptions
from tests.runtime.byte_model import MEDIA, make_image
from tests.runtime.fake_engine import StepCall
from tests.runtime.scheduling.doubles import (
    CHUNK,
    Drive,
    ask,
    end_of,
    ids_said,
    make_memory_engine,
    say_alone,
)

SAMPLINGS = [
    Sampling.greedy(),
    Sampling(temperature=0.8, seed=4),
    Sampling(temperature=1.3, top_k=40, repetition_penalty=1.2, seed=5),
    Sampling(logprobs=2),
]


def is_decoding(call: StepCall) -> bool:
    """Prompts of these tests are never prefilled by single tokens."""
    return call.num_tokens == 1


def test_requests_that_join_and_leave_at_any_time_say_what_each_says_alone() -> None:
    generator = np.random.default_rng(0)
    engine = make_memory_engine(max_slots=4)
    drive = Drive(engine)
    requests = [
        ask(
            *generator.integers(0, 256, generator.integers(1, 30)).tolist(),
            max_new_tokens=int(generator.integers(1, 25)),
            sampling=SAMPLINGS[place % 4],
        )
        for place in range(40)
    ]
    waiting = list(requests)
    while waiting or drive.batch.jobs:
        while waiting and drive.batch.slots.num_free and generator.random() < 0.4:
            drive.admit(waiting.pop(0))
        drive.batch.turn()
    assert [ids_said(one) for one in requests] == [say_alone(one) for one in requests]
    assert max(len(call.slots) for call in engine.steps) == 4
    drive.batch.slots.check()


def test_between_two_tokens_of_a_running_answer_is_at_most_one_chunk() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    running = drive.admit(ask(*range(8), max_new_tokens=30))
    drive.turns(3)
    assert running.is_decoding
    engine.steps.clear()
    for first, size in ((100, 32), (150, 48)):
        drive.admit(ask(*range(first, first + size), max_new_tokens=2))
    drive.turns(20)
    kinds = [is_decoding(call) for call in engine.steps]
    assert kinds == [False, True] * 20
    assert all(running.run.slot in call.slots for call in engine.steps if is_decoding(call))


def test_a_prompt_that_is_ready_is_decoded_in_the_same_turn() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    job = drive.admit(ask(*range(CHUNK), max_new_tokens=5))
    drive.turns(1)
    assert [is_decoding(call) for call in engine.steps] == [False, True]
    assert len(job.run.decoding.ids) == 2


def test_an_image_takes_a_turn_of_its_own_and_running_answers_go_on() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    running = drive.admit(ask(1, 2, max_new_tokens=40))
    drive.turns(1)
    images = [make_image(2, 2, value) for value in (0.25, 0.5)]
    drive.admit(ask(5, MEDIA, 6, MEDIA, images=images))
    seen = []
    for _ in range(3):
        before = len(running.run.decoding.ids)
        drive.turns(1)
        seen.append((len(engine.encoded), len(running.run.decoding.ids) - before))
    assert seen == [(1, 1), (2, 1), (2, 1)]
    assert [call.num_tokens for call in engine.steps[-2:]] == [4, 1]


def test_chunks_are_smaller_while_others_are_answered() -> None:
    engine = make_memory_engine()
    drive = Drive(engine, SchedulerOptions(chunk_beside_decoding=3))
    drive.admit(ask(*range(8), max_new_tokens=4))
    drive.turns(2)
    drive.admit(ask(*range(50, 70), max_new_tokens=2))
    drive.finish()
    assert [call.num_tokens for call in engine.steps if not is_decoding(call)] == [
        4,
        4,
        3,
        3,
        *[4] * 3,
        2,
    ]


def test_the_oldest_prompt_gets_every_second_chunk_and_the_shortest_the_others() -> None:
    engine = make_memory_engine(max_slots=4)
    drive = Drive(engine)
    long = drive.admit(ask(*range(40), max_new_tokens=1))
    short = [drive.admit(ask(*range(100 + 9 * n, 108 + 9 * n), max_new_tokens=1)) for n in range(3)]
    ends: dict[str, int] = {}
    for turn in range(1, 17):
        drive.turns(1)
        for name, job in (("long", long), *zip("abc", short, strict=True)):
            if job.is_ended:
                ends.setdefault(name, turn)
    assert ends == {"a": 4, "b": 8, "c": 12, "long": 16}


def test_of_prompts_of_one_length_the_first_is_answered_first() -> None:
    drive = Drive(make_memory_engine())
    jobs = [drive.admit(ask(*range(n, n + 8), max_new_tokens=1)) for n in (0, 50, 100)]
    ends = []
    for _ in range(6):
        drive.turns(1)
        ends.append([job.is_ended for job in jobs].count(True))
    assert ends == [0, 1, 1, 2, 2, 3]
    assert [job.is_ended for job in jobs] == [True] * 3


@pytest.mark.parametrize("turns_before", [0, 1, 2, 3, 4, 6])
def test_a_cancelled_request_frees_its_slot_with_the_next_turn(turns_before: int) -> None:
    """Before anything; after its first image, its second, a chunk, the last chunk, some tokens."""
    engine = make_memory_engine()
    drive = Drive(engine)
    other = drive.admit(ask(9, 8, 7, max_new_tokens=20))
    images = [make_image(2, 2, value) for value in (0.25, 0.5)]
    ids = [5, MEDIA, 6, MEDIA, 1, 2, 3]
    job = drive.admit(ask(*ids, images=images, max_new_tokens=20))
    drive.turns(1 + turns_before)
    said = len(job.run.decoding.ids)
    job.handle.cancel()
    drive.turns(1)
    assert drive.batch.slots.num_free == 2
    assert end_of(job).reason == "cancelled"
    assert ids_said(job.request) == say_alone(job.request)[:said]
    drive.finish()
    assert ids_said(other.request) == say_alone(other.request)


def test_a_request_over_its_time_is_ended_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("runtime.scheduling.job.monotonic", lambda: now)
    drive = Drive(make_memory_engine())
    job = drive.admit(ask(1, 2, 3, max_new_tokens=50), deadlines=Deadlines(total_s=2))
    drive.turns(3)
    now = 101.9
    drive.turns(1)
    assert not job.is_ended
    now = 102.1
    drive.turns(1)
    end = end_of(job)
    assert isinstance(end.error, DeadlineError)
    assert "within 2 s" in str(end.error)
    assert end.result is not None
    assert len(end.result.ids) == 5
    assert drive.batch.slots.num_free == 3


@pytest.mark.parametrize("is_greedy", [True, False])
def test_logits_that_are_not_finite_end_their_own_request_only(*, is_greedy: bool) -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    sampling = Sampling.greedy() if is_greedy else Sampling(temperature=1, seed=1)
    jobs = [
        drive.admit(ask(*range(n, n + 4), sampling=sampling, max_new_tokens=12)) for n in (0, 9, 50)
    ]
    drive.turns(5)
    bad = jobs[1]
    engine.poisoned.add(bad.run.slot)
    drive.turns(1)
    assert isinstance(end_of(bad).error, NumericError)
    assert drive.batch.slots.num_free == 1
    drive.finish()
    for job in (jobs[0], jobs[2]):
        assert ids_said(job.request) == say_alone(job.request)
    assert drive.counters.errors == {"NumericError": 1}
    again = drive.answer(ask(*range(9, 13), max_new_tokens=12))
    assert again.run.num_reused == 0  # what the bad slot held is not trusted
    assert ids_said(again.request) == say_alone(again.request)


def test_a_step_that_raises_ends_those_in_it_and_the_next_requests_are_answered() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    jobs = [drive.admit(ask(*range(n, n + 4), max_new_tokens=30)) for n in (0, 50)]
    drive.turns(4)
    waiting = drive.admit(ask(*range(100, 120), max_new_tokens=3))

    def fail(call: StepCall) -> None:
        if is_decoding(call):
            raise RuntimeError("the device is lost")

    engine.before_step = fail
    drive.turns(1)
    for job in jobs:
        error = end_of(job).error
        assert isinstance(error, EngineFailedError)
        assert "the device is lost" in str(error)
    assert drive.counters.failures.in_a_row() == 1
    engine.before_step = lambda call: None
    drive.finish()
    assert ids_said(waiting.request) == say_alone(waiting.request)
    assert drive.counters.failures.in_a_row() == 0
    again = drive.answer(ask(*range(4), max_new_tokens=30))
    assert again.run.num_reused == 0


def test_a_chunk_that_raises_ends_its_own_request_only() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    running = drive.admit(ask(1, 2, 3, max_new_tokens=10))
    drive.turns(1)
    job = drive.admit(ask(*range(100, 120)))

    def fail(call: StepCall) -> None:
        if call.lengths == (8,) and not is_decoding(call):
            raise RuntimeError("no kernel")

    engine.before_step = fail
    drive.finish()
    assert isinstance(end_of(job).error, EngineFailedError)
    assert ids_said(running.request) == say_alone(running.request)


def test_an_image_that_cannot_be_encoded_ends_its_own_request_only() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    running = drive.admit(ask(1, 2, 3, max_new_tokens=10))

    def fail(image: PatchedImage) -> None:
        raise NumericError("3 of 9 values from the vision encoder are not finite")

    engine.before_encode = fail
    job = drive.admit(ask(5, MEDIA, images=[make_image(2, 2, 0.5)]))
    drive.finish()
    assert isinstance(end_of(job).error, NumericError)
    assert ids_said(running.request) == say_alone(running.request)


@pytest.mark.parametrize("num_pieces", [0, 3])
def test_a_listener_that_raises_ends_its_own_request_only(num_pieces: int) -> None:
    drive = Drive(make_memory_engine())
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if len(heard) > num_pieces:
            raise ValueError("the reader is gone")

    job = drive.admit(ask(1, 2, 3, max_new_tokens=30), listener=listen)
    other = drive.admit(ask(7, 8, 9, max_new_tokens=30))
    drive.finish()
    error = end_of(job).error
    assert isinstance(error, HandlingError)
    assert "ValueError: the reader is gone" in str(error)
    assert heard[-1] is job.handle.end
    assert ids_said(other.request) == say_alone(other.request)
    assert drive.counters.errors["HandlingError"] == 1


def test_sampling_that_raises_ends_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(make_memory_engine())
    sampling = Sampling(temperature=1, seed=2)
    jobs = [
        drive.admit(ask(*range(n, n + 3), sampling=sampling, max_new_tokens=9)) for n in (0, 40)
    ]
    drive.turns(4)

    def fail(*values: object) -> None:
        raise ZeroDivisionError("no weights")

    monkeypatch.setattr(jobs[0].run.decoding._sampler, "choose", fail)
    drive.finish()
    assert isinstance(end_of(jobs[0]).error, HandlingError)
    assert ids_said(jobs[1].request) == say_alone(jobs[1].request)


class BreakingGrammar:
    """Allows everything three times, then raises."""

    def __init__(self, *, breaks_at_start: bool) -> None:
        self.left = 3
        self.breaks_at_start = breaks_at_start

    def start(self) -> "BreakingGrammar":
        if self.breaks_at_start:
            raise RecursionError("too deep")
        return self

    def allowed(self, best_id: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        if not self.left:
            raise ConstraintError("no way on")
        self.left -= 1
        return np.ones(200, dtype=np.bool_)

    def accept(self, token_id: int) -> None:
        assert token_id < 200


@pytest.mark.parametrize("breaks_at_start", [True, False])
def test_a_grammar_that_raises_ends_its_own_request_only(*, breaks_at_start: bool) -> None:
    drive = Drive(make_memory_engine())
    other = drive.admit(ask(7, 8, 9, max_new_tokens=12))
    request = ask(1, 2, 3, max_new_tokens=12)
    request.grammar = BreakingGrammar(breaks_at_start=breaks_at_start)
    job = drive.admit(request)
    drive.finish()
    error = end_of(job).error
    assert isinstance(error, HandlingError if breaks_at_start else ConstraintError)
    assert ids_said(other.request) == say_alone(other.request)


def test_pieces_are_all_the_ids_and_come_before_the_one_end() -> None:
    drive = Drive(make_memory_engine())
    job = drive.answer(ask(1, 2, 3, max_new_tokens=20))
    *pieces, end = job.handle.events()
    assert end is job.handle.end
    ids = [token_id for piece in pieces if isinstance(piece, Piece) for token_id in piece.token_ids]
    assert tuple(ids) == ids_said(job.request)
    assert list(job.handle.events()) == []


def test_slots_of_a_decoding_step_rise_whoever_came_first() -> None:
    engine = make_memory_engine(max_slots=3)
    drive = Drive(engine)
    for first, count in ((1, 2), (50, 30), (100, 30)):
        drive.admit(ask(first, max_new_tokens=count))
    drive.turns(4)
    late = drive.admit(ask(150, max_new_tokens=5))
    assert [job.run.slot for job in drive.batch.jobs] == [1, 2, late.run.slot] == [1, 2, 0]
    drive.finish()
    together = [call.slots for call in engine.steps if len(call.slots) == 3]
    assert len(together) > 3
    assert all(a < b for slots in together for a, b in pairwise(slots))


def test_every_token_is_measured() -> None:
    drive = Drive(make_memory_engine())
    job = drive.answer(ask(1, 2, 3, max_new_tokens=7))
    measures = [measure for measure, _ in drive.measured]
    said = len(ids_said(job.request))
    assert measures == [
        "queue_s",
        "time_to_first_token_s",
        *["time_per_token_s"] * (said - 1),
        "total_s",
    ]
    assert drive.counters.new_tokens == said
    total = drive.measured[-1][1]
    assert sum(seconds for _, seconds in drive.measured[1:-1]) == pytest.approx(total, abs=0.05)
