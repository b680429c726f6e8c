"""Greedy steps of the TensorRT session: the device chooses, and hardly anything is read of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runtime import GenerationLimits, Sampling, Session
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.protocol import Engine, FloatArray
from runtime.engine.trt.engine import TensorRTEngine
from runtime.errors import CapacityError, NumericError
from runtime.prompt.encoder import Prompt
from tests.executing_trt import HostDevice
from tests.runtime.conftest import PLANS_SIZES

START = np.zeros(1, dtype=np.int64)
BYTES_OF_A_CHOICE = 8


def hidden_of(engine: Engine, num_slots: int, length: int, seed: int) -> FloatArray:
    ids = np.random.default_rng(seed).integers(0, 700, (num_slots, length))
    return np.stack([engine.embed(row) for row in ids])


def assert_same_choice(
    engine: Engine, slots: Sequence[int], hidden: FloatArray, lengths: list[int], rows: list[int]
) -> list[int]:
    """Take one step twice, the second time greedily; return the ids."""
    given = slots, hidden, np.array(lengths, dtype=np.int64), np.array(rows, dtype=np.int64)
    logits, ids = engine.step(*given), engine.step_greedy(*given)
    assert ids.dtype == np.int64
    found: list[int] = ids.tolist()
    assert found == logits.argmax(axis=1).tolist()
    return found


@pytest.mark.parametrize("engine_name", ["engine", "truth"])
def test_a_greedy_step_gives_the_ids_of_the_highest_logits(
    engine_name: str, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(engine_name)
    # Two chunks in slots that are no neighbours; more rows than the head takes at a time.
    rows = np.random.default_rng(0).permutation(2 * 21).tolist()
    ids = assert_same_choice(engine, [3, 1], hidden_of(engine, 2, 21, seed=1), [0, 0], rows)
    assert len(set(ids)) > 3
    assert_same_choice(engine, [0], hidden_of(engine, 1, 5, seed=2), [0], [4, 0, 4])
    assert_same_choice(engine, [0], hidden_of(engine, 1, 5, seed=2), [0], [])


def test_one_recording_serves_both_kinds_of_steps(
    engine: TensorRTEngine, device: HostDevice
) -> None:
    before = device.replays
    for length in range(5):
        assert_same_choice(engine, [2], hidden_of(engine, 1, 1, seed=length), [length], [0])
    assert device.replays - before == 8  # of 10 steps the first runs, the second is recorded


def bytes_of_looks(prompt: Prompt) -> int:
    """What is read of a prompt's chunks but the last, to see whether they went wrong."""
    assert PLANS_SIZES.prefill_chunk is not None
    return BYTES_OF_A_CHOICE * ((prompt.ids.size - 1) // PLANS_SIZES.prefill_chunk)


def test_greedy_decoding_reads_eight_bytes_for_a_token(
    built: Path, engine: TensorRTEngine, device: HostDevice
) -> None:
    known = Session.open(built, num_threads=1)
    session = Session(engine, known.encoder, stop_ids=known.stop_ids)
    prompt = session.encode([{"role": "user", "content": "A question without a picture."}])
    limits = GenerationLimits(max_new_tokens=12)
    answers, num_bytes = [], []
    for sampling in (Sampling.greedy(), Sampling(logprobs=1)):
        request, before = session.request(prompt, sampling, limits), device.bytes_read
        list(session.stream(request))
        num_bytes.append(device.bytes_read - before)
        assert request.result is not None
        answers.append(request.result.ids)
    assert answers[0] == answers[1]
    looks = bytes_of_looks(prompt)
    assert num_bytes == [looks + len(answers[0]) * size for size in (BYTES_OF_A_CHOICE, 4 * 768)]


def test_batched_greedy_answers_read_no_logits_unless_one_beside_them_needs_some(
    built: Path, engine: TensorRTEngine, device: HostDevice
) -> None:
    known = Session.open(built, num_threads=1)
    session = Session(engine, known.encoder, stop_ids=known.stop_ids)
    texts = ("Short.", "A longer question.", "The longest question of all of these.")
    prompts = [session.encode([{"role": "user", "content": text}]) for text in texts]
    answers, num_bytes = [], []
    for last in (Sampling.greedy(), Sampling(logprobs=1)):
        samplings = [Sampling.greedy(), Sampling.greedy(), last]
        limits = GenerationLimits(max_new_tokens=9)
        requests = [session.request(*one, limits) for one in zip(prompts, samplings, strict=True)]
        before = device.bytes_read
        found = sorted(session.answer_all(requests), key=lambda answer: answer.index)
        num_bytes.append(device.bytes_read - before)
        answers.append([answer.ids for answer in found])
    assert answers[0] == answers[1]
    looks = sum(map(bytes_of_looks, prompts))
    assert num_bytes[0] == looks + BYTES_OF_A_CHOICE * sum(map(len, answers[0]))
    assert num_bytes[1] >= 4 * 768 * len(answers[1][2])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_ends_the_step_and_clears_its_slots(
    value: float, engine: TensorRTEngine, truth: CpuEngine, device: HostDevice
) -> None:
    bad = hidden_of(engine, 2, 5, seed=7)
    bad[1, 2] = value
    before = device.bytes_read
    with pytest.raises(NumericError, match="from the decoder are not finite"):
        engine.step_greedy([2, 3], bad, np.zeros(2, np.int64), np.array([4, 9]))
    assert device.bytes_read - before == BYTES_OF_A_CHOICE * 2  # energies and ids
    good = hidden_of(engine, 1, 2, seed=8)
    for slot in (2, 3):
        found, expected = (
            one.step([slot], good, START, np.array([0, 1])) for one in (engine, truth)
        )
        assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


def test_a_greedy_step_over_the_capacity_is_refused(
    engine: TensorRTEngine, truth: CpuEngine
) -> None:
    for one in (engine, truth):
        with pytest.raises(CapacityError, match="257 tokens do not fit a cache of 256"):
            one.step_greedy([0], hidden_of(one, 1, 2, seed=9), START + 255, np.array([1]))
