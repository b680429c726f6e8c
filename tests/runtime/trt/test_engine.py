"""The TensorRT session against the CPU session: same ids, same images, same logits.

Both compute what the graphs say in fp32; the double rounds at the borders of plans to fp16.
"""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
from engines.build import build_target
from engines.options import BuildOptions, PlanOptions
from examples.nano.score import HERE
from runtime import Session
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.protocol import FloatArray, NonFiniteRowsError
from runtime.engine.trt.engine import TensorRTEngine
from runtime.errors import CapacityError, NumericError
from runtime.prompt.encoder import PromptEncoder
from tests.executing_trt import HostDevice
from tests.runtime.fed import feed, ids_of

from .conftest import SIZES, TARGET, make_engine

TOLERANCE = 2e-3
"""Of the largest value: hidden states and cache are rounded to fp16 between plans."""
NONE = np.zeros(0, dtype=np.int64)


def assert_close(found: FloatArray, expected: FloatArray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_a_prompt_longer_than_a_step_gives_the_logits_of_the_cpu(
    engine: TensorRTEngine, truth: CpuEngine
) -> None:
    ids = ids_of(39, seed=1)  # two whole chunks of 16 and a rest of 7
    assert_close(feed(engine, [0], [ids], [0]), feed(truth, [0], [ids], [0]))


def test_decoding_is_recorded_once_and_replayed(
    engine: TensorRTEngine, truth: CpuEngine, device: HostDevice
) -> None:
    ids = ids_of(20, seed=2)
    for one in (engine, truth):
        feed(one, [0], [ids[:10]], [0])
    before = device.replays
    for length in range(10, 20):
        found, expected = (
            feed(one, [0], [ids[length : length + 1]], [length]) for one in (engine, truth)
        )
        assert_close(found, expected)
    assert device.replays - before == 8  # the first two run, the second is recorded


def test_slots_that_are_no_neighbours_run_with_lengths_of_their_own(
    engine: TensorRTEngine, truth: CpuEngine
) -> None:
    slots, lengths = [3, 0, 1], [9, 2, 17]
    texts = [ids_of(length, seed=slot) for slot, length in zip(slots, lengths, strict=True)]
    for one in (engine, truth):
        for slot, ids in zip(slots, texts, strict=True):
            feed(one, [slot], [ids], [0])
    for new in (1, 3):
        more = [ids_of(new, seed=10 + slot) for slot in slots]
        assert_close(feed(engine, slots, more, lengths), feed(truth, slots, more, lengths))


def test_only_wanted_logits_are_read(engine: TensorRTEngine, truth: CpuEngine) -> None:
    texts = [ids_of(21, seed=30), ids_of(21, seed=31)]
    rows = np.array([41, 3, 20, 21])  # of both slots and both chunks, in no order
    start = np.zeros(2, dtype=np.int64)
    found, expected = (
        one.step([1, 2], np.stack([one.embed(ids) for ids in texts]), start, rows)
        for one in (engine, truth)
    )
    assert_close(found, expected)
    assert engine.step([1], engine.embed(texts[0])[None], start[:1], NONE).shape == (0, 768)


def test_a_prefix_is_copied_between_slots(engine: TensorRTEngine, truth: CpuEngine) -> None:
    ids, last = ids_of(12, seed=40), ids_of(1, seed=41)
    feed(engine, [2], [ids], [0])
    engine.copy_prefix(2, 0, 12)
    feed(truth, [2], [ids], [0])
    assert_close(feed(engine, [0], [last], [12]), feed(truth, [2], [last], [12]))


def test_images_of_any_grid_give_the_features_of_the_cpu(
    engine: TensorRTEngine, truth: CpuEngine
) -> None:
    config = KimiVLConfig.load(HERE / "checkpoint" / "config.json")
    encoder = PromptEncoder.load(HERE / "checkpoint", config)
    seen = set()
    for example in load_examples("nano")[:8]:
        for image in encoder.encode(example.messages).images:
            seen.add(image.grid)
            assert_close(engine.encode(image), truth.encode(image))
    assert len(seen) > 1


def test_answers_are_those_of_the_cpu(built: Path, engine: TensorRTEngine) -> None:
    session = Session.open(built, num_threads=1)
    on_plans = Session(engine, session.encoder, stop_ids=session.stop_ids)
    questions = load_examples("nano")[:12]
    expected = evaluate(session, questions, max_new_tokens=48)
    found = evaluate(on_plans, questions, max_new_tokens=48)
    assert [one.answer for one in found.outcomes] == [one.answer for one in expected.outcomes]
    assert found.exact_match == expected.exact_match > 0.9


def test_a_text_over_the_capacity_is_refused(engine: TensorRTEngine) -> None:
    with pytest.raises(CapacityError, match="257 tokens do not fit a cache of 256"):
        feed(engine, [0], [ids_of(2, seed=1)], [255])
    with pytest.raises(CapacityError, match="the engine has 4"):
        feed(engine, [4], [ids_of(2, seed=1)], [0])


def test_a_slot_that_ended_in_nan_is_clean_for_the_next_text(
    built: Path, engine: TensorRTEngine, truth: CpuEngine
) -> None:
    bad = np.full((1, 5, 128), np.nan, dtype=np.float32)
    with pytest.raises(NumericError):
        engine.step([3], bad, np.zeros(1, np.int64), np.array([4]))
    ids = ids_of(2, seed=50)
    assert_close(feed(engine, [3], [ids], [0]), feed(truth, [3], [ids], [0]))


def test_a_prompt_that_goes_wrong_in_the_middle_ends_there_and_leaves_nothing(
    engine: TensorRTEngine, truth: CpuEngine
) -> None:
    hidden = engine.embed(ids_of(40, seed=80))[None]
    hidden[0, 10] = np.nan
    with pytest.raises(NumericError) as caught:
        engine.step([2], hidden, np.zeros(1, np.int64), NONE)
    assert not isinstance(caught.value, NonFiniteRowsError)  # there is no row to end
    ids = ids_of(2, seed=81)
    assert_close(feed(engine, [2], [ids], [0]), feed(truth, [2], [ids], [0]))


def test_weights_of_the_layers_that_share_a_plan_lie_on_the_device_once(
    built: Path, device: HostDevice, engine: TensorRTEngine
) -> None:
    record = Artifact.open(built).target(TARGET).plans
    assert record is not None
    bound = {weight for one in record.engines.values() for weight in one.weights.values()}
    sizes = [block.size_bytes for block in device.blocks.values()]
    for weight in bound:
        assert weight.length in sizes
    assert sum(weight.length for weight in bound) < sum(sizes)


def test_a_closed_engine_has_given_all_memory_and_recordings_back(built: Path) -> None:
    device = HostDevice()
    engine = make_engine(built, device)
    for length in range(3):  # run, run to record, replayed
        feed(engine, [0], [ids_of(1, seed=length)], [length])
    assert any(device.recordings)
    engine.close()
    engine.close()
    assert not device.blocks
    assert not any(device.recordings)


def test_so_has_one_that_nobody_holds_any_more_or_that_could_not_be_opened(built: Path) -> None:
    device = HostDevice()
    engine = make_engine(built, device)
    assert device.blocks
    del engine
    gc.collect()
    assert not device.blocks
    small = HostDevice(memory_bytes=1 << 20)
    with pytest.raises(CapacityError):
        make_engine(built, small)
    gc.collect()
    assert not small.blocks


def test_too_little_memory_is_told_before_anything_runs(built: Path) -> None:
    with pytest.raises(CapacityError, match="bytes more are needed"):
        make_engine(built, HostDevice(memory_bytes=1 << 20))


def test_layers_that_one_plan_runs_give_what_each_alone_gives(
    built: Path, truth: CpuEngine, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    build_target(folder, TARGET, replace(SIZES, plans=PlanOptions(layers_per_engine=2)))
    record = Artifact.open(folder).target(TARGET).plans
    assert record is not None
    assert [one.graphs for one in record.engines.values() if len(one.graphs) > 1] == [
        ("layer_01", "layer_02")
    ]
    engine, ids = make_engine(folder, HostDevice()), ids_of(21, seed=60)
    assert_close(feed(engine, [1], [ids], [0]), feed(truth, [1], [ids], [0]))
    for length in range(21, 24):  # a run, a recording, a replay
        last = ids_of(1, seed=length)
        assert_close(feed(engine, [1], [last], [length]), feed(truth, [1], [last], [length]))


@pytest.fixture(scope="module")
def odd(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Limits that are no multiples of anything, and room for three windows."""
    folder = shutil.copytree(built, tmp_path_factory.mktemp("odd") / "artifact")
    sizes = BuildOptions(max_tokens=523, max_slots=3, prefill_chunk=37)
    build_target(folder, "cpu", sizes)
    build_target(folder, TARGET, sizes)
    return folder


def test_recordings_of_two_windows_and_of_other_slots_do_not_disturb_each_other(odd: Path) -> None:
    artifact, device = Artifact.open(odd), HostDevice()
    assert artifact.target(TARGET).limits.max_tokens == 528  # slots begin at multiples of 256 bytes
    engine, truth = make_engine(odd, device), CpuEngine(artifact, num_threads=1)
    texts = {0: ids_of(251, seed=70), 1: ids_of(300, seed=71), 2: ids_of(40, seed=72)}
    for slot, ids in texts.items():
        for one in (engine, truth):
            feed(one, [slot], [ids], [0])
    lengths = {slot: len(ids) for slot, ids in texts.items()}
    for turn in range(9):  # slot 0 goes from the first window to the second
        slot = turn % 3
        for slots in ([slot], [0, 1, 2]):
            last = [ids_of(1, seed=80 + turn) for _ in slots]
            before = [lengths[each] for each in slots]
            found, expected = (feed(one, slots, last, before) for one in (engine, truth))
            assert_close(found, expected)
            for each in slots:
                lengths[each] += 1
    assert device.replays > 4


def test_what_cannot_be_recorded_runs_all_the_same(odd: Path) -> None:
    device = HostDevice()
    device.can_record = False
    engine, truth = make_engine(odd, device), CpuEngine(Artifact.open(odd), num_threads=1)
    for length in range(4):
        last = ids_of(1, seed=90 + length)
        assert_close(feed(engine, [2], [last], [length]), feed(truth, [2], [last], [length]))
    assert device.replays == 0
