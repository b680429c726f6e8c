"""What is the TensorRT engine's own: recordings, shared plans, weights on the device."""

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import build_target
from engines.options import BuildOptions, PlanOptions
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.trt.engine import TensorRTEngine
from runtime.errors import CapacityError
from tests.executing_trt import HostDevice
from tests.runtime.conftest import PLANS_SIZES, PLANS_TARGET
from tests.runtime.fed import PLANS_TOLERANCE, check_close, feed, ids_of

from .conftest import make_engine

NONE = np.zeros(0, dtype=np.int64)

assert_close = functools.partial(check_close, tolerance=PLANS_TOLERANCE)


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


def test_weights_of_the_layers_that_share_a_plan_lie_on_the_device_once(
    built: Path, device: HostDevice, engine: TensorRTEngine
) -> None:
    record = Artifact.open(built).target(PLANS_TARGET).plans
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


def test_an_image_too_large_for_memory_leaves_no_buffer_that_is_not_there(built: Path) -> None:
    device = HostDevice()
    engine = make_engine(built, device)
    stage = engine._vision
    small = stage._buffer("patches", 1000)
    device.memory_bytes = 500
    with pytest.raises(CapacityError):
        stage._buffer("patches", 2000)
    assert small not in device.blocks
    device.memory_bytes = 5000
    again = stage._buffer("patches", 800)
    assert again in device.blocks
    assert stage._buffer("patches", 800) == again


def test_too_little_memory_is_told_before_anything_runs(built: Path) -> None:
    with pytest.raises(CapacityError, match="bytes more are needed"):
        make_engine(built, HostDevice(memory_bytes=1 << 20))


def test_layers_that_one_plan_runs_give_what_each_alone_gives(
    built: Path, truth: CpuEngine, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    build_target(folder, PLANS_TARGET, replace(PLANS_SIZES, plans=PlanOptions(layers_per_engine=2)))
    record = Artifact.open(folder).target(PLANS_TARGET).plans
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
    build_target(folder, PLANS_TARGET, sizes)
    return folder


def test_recordings_of_two_windows_and_of_other_slots_do_not_disturb_each_other(odd: Path) -> None:
    artifact, device = Artifact.open(odd), HostDevice()
    limits = artifact.target(PLANS_TARGET).limits
    assert limits.max_tokens == 528  # slots begin at multiples of 256 bytes
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
