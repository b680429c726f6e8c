"""What was computed once is not computed again, and answers do not change by it."""

import numpy as np
import pytest

from runtime.scheduling.options import SchedulerOptions
from tests.runtime.byte_model import MEDIA, make_image
from tests.runtime.scheduling.doubles import (
    Drive,
    ask,
    end_of,
    ids_said,
    make_memory_engine,
    say_alone,
)

IMAGE, OTHER_IMAGE = make_image(2, 4, 0.25), make_image(2, 4, 0.5)
QUESTION = [1, 2, MEDIA, MEDIA, 3, 4]


def test_the_second_turn_of_a_chat_prefills_only_what_is_new_and_encodes_nothing() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    first = drive.answer(ask(*QUESTION, images=[IMAGE], max_new_tokens=6))
    said = ids_said(first.request)
    engine.steps.clear()
    again = ask(*QUESTION, *said, 7, 8, 9, images=[IMAGE], max_new_tokens=6)
    second = drive.answer(again)
    # The last token said was never appended: with it the prompt has 4 new ones.
    assert second.run.num_reused == len(QUESTION) + len(said) - 1
    assert [call.num_tokens for call in engine.steps if call.num_tokens > 1] == [4]
    assert (len(engine.encoded), engine.copies) == (1, [])
    assert second.run.slot == first.run.slot
    assert ids_said(again) == say_alone(again)
    end = end_of(second)
    assert end.result is not None
    assert end.result.usage.reused_tokens == second.run.num_reused
    counters = drive.counters
    assert (counters.reused_tokens, counters.reusing_requests) == (second.run.num_reused, 1)
    assert (counters.images_encoded, counters.images_reused) == (1, 0)


def test_a_history_without_the_thinking_is_reused_up_to_where_the_thinking_was() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    first = drive.answer(ask(*QUESTION, images=[IMAGE], max_new_tokens=6))
    said = ids_said(first.request)
    again = ask(*QUESTION, *said[4:], 7, 8, images=[IMAGE])
    second = drive.answer(again)
    assert second.run.num_reused == len(QUESTION)
    assert len(engine.encoded) == 1
    assert ids_said(again) == say_alone(again)


def test_another_image_at_the_same_place_is_not_taken_for_the_first() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    drive.answer(ask(*QUESTION, images=[IMAGE]))
    again = ask(*QUESTION, images=[OTHER_IMAGE])
    second = drive.answer(again)
    assert second.run.num_reused == 2
    assert len(engine.encoded) == 2
    assert ids_said(again) == say_alone(again)


def test_an_image_behind_another_beginning_is_prefilled_but_not_encoded_again() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    drive.answer(ask(*QUESTION, images=[IMAGE]))
    again = ask(9, 9, *QUESTION, images=[IMAGE])
    second = drive.answer(again)
    assert second.run.num_reused == 0
    assert len(engine.encoded) == 1
    assert drive.counters.images_reused == 1
    assert ids_said(again) == say_alone(again)


def test_without_a_budget_images_are_encoded_each_time() -> None:
    engine = make_memory_engine()
    drive = Drive(engine, SchedulerOptions(image_cache_bytes=0))
    for first in (8, 9):
        drive.answer(ask(first, *QUESTION, images=[IMAGE]))
    assert len(engine.encoded) == 2


def test_a_beginning_is_copied_from_a_request_that_runs() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    system = list(range(40, 60))
    running = drive.admit(ask(*system, 1, 2, max_new_tokens=40))
    drive.turns(8)
    again = ask(*system, 3, 4)
    job = drive.admit(again)
    drive.turns(1)
    assert engine.copies == [(running.run.slot, job.run.slot, len(system))]
    drive.finish()
    assert ids_said(again) == say_alone(again)
    assert ids_said(running.request) == say_alone(running.request)


def test_requests_sent_together_share_what_the_first_of_them_computes() -> None:
    engine = make_memory_engine()
    drive = Drive(engine)
    prompts = [[*QUESTION, *range(30, 50), last] for last in (1, 2, 3)]
    jobs = [drive.admit(ask(*prompt, images=[IMAGE])) for prompt in prompts]
    drive.finish()
    assert [job.run.num_reused for job in jobs] == [0, 26, 26]
    assert len(engine.encoded) == 1
    assert [ids_said(job.request) for job in jobs] == [say_alone(job.request) for job in jobs]


def test_what_a_cancelled_prefill_left_is_not_offered() -> None:
    """No logits have shown that it is finite."""
    drive = Drive(make_memory_engine())
    job = drive.admit(ask(*range(20)))
    drive.turns(2)
    job.handle.cancel()
    drive.turns(1)
    again = drive.answer(ask(*range(20)))
    assert again.run.num_reused == 0
    assert ids_said(again.request) == say_alone(again.request)


def test_a_short_common_beginning_does_not_cost_a_long_chat_its_slot() -> None:
    engine = make_memory_engine(max_slots=2)
    drive = Drive(engine)
    system = [1, 2, 3, 4]
    chat = drive.answer(ask(*system, *range(20, 60), max_new_tokens=4))
    other = drive.answer(ask(*system, 100))
    assert other.run.num_reused == 4
    assert engine.copies == [(chat.run.slot, other.run.slot, 4)]
    said = ids_said(chat.request)
    again = drive.answer(ask(*system, *range(20, 60), *said, 9))
    assert again.run.num_reused == 44 + len(said) - 1


def test_a_slot_that_a_beginning_was_copied_from_counts_as_used() -> None:
    drive = Drive(make_memory_engine(max_slots=3))
    shared = [1, 2, 3, 4]
    old = drive.answer(ask(*shared, *range(20, 60)))
    newer = drive.answer(ask(*range(100, 140)))
    drive.admit(ask(*shared, 99, max_new_tokens=40))
    drive.turns(1)
    stranger = drive.admit(ask(200, 201))
    assert stranger.run.slot == newer.run.slot != old.run.slot


@pytest.mark.parametrize("max_slots", [1, 2, 5])
def test_random_chats_that_share_beginnings_say_what_they_say_alone(max_slots: int) -> None:
    generator = np.random.default_rng(max_slots)
    engine = make_memory_engine(max_slots=max_slots)
    drive = Drive(engine)
    images = [IMAGE, OTHER_IMAGE]
    texts: list[tuple[list[int], list[int]]] = [([1, 2, 3], [])]
    requests = []
    for _ in range(60):
        ids, shown = texts[generator.integers(len(texts))]
        ids, shown = list(ids[: generator.integers(len(ids)) + 1]), list(shown)
        shown = shown[: ids.count(MEDIA) // 2]
        ids = [*ids, *([MEDIA] if ids.count(MEDIA) % 2 else [])]
        if generator.random() < 0.3 and len(shown) < 3:
            ids += [MEDIA, MEDIA]
            shown.append(int(generator.integers(2)))
        shown += [0] * (ids.count(MEDIA) // 2 - len(shown))
        ids += generator.integers(0, 4, 3).tolist()
        if len(ids) > 60:
            continue
        request = ask(*ids, images=[images[one] for one in shown], max_new_tokens=5)
        while not drive.batch.slots.num_free:
            drive.turns(1)
        drive.admit(request)
        drive.turns(int(generator.integers(3)))
        requests.append(request)
        texts.append((ids, shown))
    drive.finish()
    assert [ids_said(one) for one in requests] == [say_alone(one) for one in requests]
    assert drive.counters.reused_tokens > drive.counters.prompt_tokens / 4
    assert len(engine.encoded) == 2
