"""Engines on a GPU against the one on the CPU: same ids, same images, same logits."""

import gc
from typing import NoReturn

import numpy as np
import pytest

from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
from examples.nano.score import HERE
from runtime import Session
from runtime.config import KimiVLConfig
from runtime.cuda import CudaError
from runtime.engine.protocol import NonFiniteRowsError
from runtime.errors import CapacityError, NumericError
from runtime.prompt.encoder import PromptEncoder
from tests.executing_trt import HostDevice
from tests.runtime.fed import feed, ids_of

from .conftest import Pair

NONE = np.zeros(0, dtype=np.int64)
START = np.zeros(1, dtype=np.int64)


def test_a_prompt_longer_than_a_step_gives_the_logits_of_the_cpu(pair: Pair) -> None:
    ids = ids_of(39, seed=1)  # two whole chunks of 16 and a rest of 7
    pair.assert_close(*(feed(one, [0], [ids], [0]) for one in pair.both))


def test_slots_that_are_no_neighbours_run_with_lengths_of_their_own(pair: Pair) -> None:
    slots, lengths = [3, 0, 1], [9, 2, 17]
    texts = [ids_of(length, seed=slot) for slot, length in zip(slots, lengths, strict=True)]
    for one in pair.both:
        for slot, ids in zip(slots, texts, strict=True):
            feed(one, [slot], [ids], [0])
    for new in (1, 3):
        more = [ids_of(new, seed=10 + slot) for slot in slots]
        pair.assert_close(*(feed(one, slots, more, lengths) for one in pair.both))


def test_only_wanted_logits_are_read(pair: Pair) -> None:
    texts = [ids_of(21, seed=30), ids_of(21, seed=31)]
    rows = np.array([41, 3, 20, 21])  # of both slots and both chunks, in no order
    hidden = np.stack([pair.engine.embed(ids) for ids in texts])
    pair.assert_close(*(one.step([1, 2], hidden, np.zeros(2, int), rows) for one in pair.both))
    assert pair.engine.step([1], hidden[:1], START, NONE).shape == (0, 768)


def test_a_prefix_is_copied_between_slots(pair: Pair) -> None:
    ids, last = ids_of(12, seed=40), ids_of(1, seed=41)
    for one in pair.both:
        feed(one, [2], [ids], [0])
    pair.engine.copy_prefix(2, 0, 12)
    found, expected = feed(pair.engine, [0], [last], [12]), feed(pair.truth, [2], [last], [12])
    pair.assert_close(found, expected)


def test_images_of_any_grid_give_the_features_of_the_cpu(pair: Pair) -> None:
    config = KimiVLConfig.load(HERE / "checkpoint" / "config.json")
    encoder = PromptEncoder.load(HERE / "checkpoint", config)
    seen = set()
    for example in load_examples("nano")[:8]:
        for image in encoder.encode(example.messages).images:
            seen.add(image.grid)
            pair.assert_close(*(one.encode(image) for one in pair.both))
    assert len(seen) > 1


def test_answers_are_those_of_the_cpu(pair: Pair) -> None:
    session = Session.open(pair.folder, num_threads=1)
    on_device = Session(pair.engine, session.encoder, stop_ids=session.stop_ids)
    questions = load_examples("nano")[:12]
    expected = evaluate(session, questions, max_new_tokens=48)
    found = evaluate(on_device, questions, max_new_tokens=48)
    assert [one.answer for one in found.outcomes] == [one.answer for one in expected.outcomes]
    assert found.exact_match == expected.exact_match > 0.9


def test_a_text_over_the_capacity_is_refused(pair: Pair) -> None:
    capacity = pair.engine.limits.max_tokens
    with pytest.raises(CapacityError, match=f"{capacity + 1} tokens do not fit a cache of"):
        feed(pair.engine, [0], [ids_of(2, seed=1)], [capacity - 1])
    with pytest.raises(CapacityError, match="the engine has 4"):
        feed(pair.engine, [4], [ids_of(2, seed=1)], [0])


@pytest.mark.parametrize("way", ["step", "step_greedy"])
def test_a_slot_that_ended_in_nan_is_clean_for_the_next_text(way: str, pair: Pair) -> None:
    bad = np.full((1, 5, 128), np.nan, dtype=np.float32)
    with pytest.raises(NonFiniteRowsError):
        getattr(pair.engine, way)([3], bad, START, np.array([4]))
    ids = ids_of(2, seed=50)
    pair.assert_close(*(feed(one, [3], [ids], [0]) for one in pair.both))


def test_a_prompt_that_goes_wrong_in_the_middle_ends_there_and_leaves_nothing(pair: Pair) -> None:
    hidden = pair.engine.embed(ids_of(40, seed=80))[None]
    hidden[0, 10] = np.nan
    with pytest.raises(NumericError) as caught:
        pair.engine.step([2], hidden, START, NONE)
    assert not isinstance(caught.value, NonFiniteRowsError)  # there is no row to end
    ids = ids_of(2, seed=81)
    pair.assert_close(*(feed(one, [2], [ids], [0]) for one in pair.both))


def test_a_closed_engine_has_given_all_memory_and_recordings_back(pair: Pair) -> None:
    device = HostDevice()
    engine = pair.open(device)
    for length in range(3):
        feed(engine, [0], [ids_of(1, seed=length)], [length])
    assert len(device.blocks) > 6
    engine.close()
    engine.close()
    assert not device.blocks
    assert not any(device.recordings)


def test_an_engine_on_a_lost_device_can_be_closed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()
    engine = pair.open(device)

    def lost() -> NoReturn:
        raise CudaError("cuCtxSetCurrent", 719, "unspecified launch failure")

    monkeypatch.setattr(device, "active", lost)
    engine.close()
    engine.close()


def test_so_has_one_that_nobody_holds_any_more_or_that_could_not_be_opened(pair: Pair) -> None:
    device = HostDevice()
    engine = pair.open(device)
    assert device.blocks
    del engine
    gc.collect()
    assert not device.blocks
    small = HostDevice(memory_bytes=1 << 20)
    with pytest.raises(CapacityError) as caught:
        pair.open(small)
    del caught
    gc.collect()
    assert small.memory_bytes < 0
    assert not small.blocks
