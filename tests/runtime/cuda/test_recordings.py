"""Which steps are recorded as CUDA graphs: told by the number that ONNX Runtime is given."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from runtime.artifact.folder import Artifact
from runtime.engine.cuda import decoder
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.cuda.provider import GRAPH_ID, UNRECORDED
from tests.executing_trt import HostDevice

from .conftest import HOST


class Watched:
    """A run's options and addresses, in order."""

    def __init__(self, engine: CudaEngine) -> None:
        self.ids: list[str] = []
        self._session = engine._decoder._session
        engine._decoder._session = self

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        self.ids.append(options.get_run_config_entry(GRAPH_ID))
        self._session.run_with_iobinding(binding, options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


@pytest.fixture
def engine(built: Path) -> CudaEngine:
    return CudaEngine(Artifact.open(built), provider=HOST, device=HostDevice())


def decode(engine: CudaEngine, slots: list[int], lengths: list[int], tokens: int = 1) -> None:
    hidden = np.zeros((len(slots), tokens, 128), dtype=np.float32)
    engine.step_greedy(slots, hidden, np.array(lengths), np.arange(len(slots)) * tokens)


def test_a_step_of_one_token_has_one_number_for_all_lengths_of_a_window(
    engine: CudaEngine,
) -> None:
    watched = Watched(engine)
    for length in (0, 1, 200, 255):
        decode(engine, [0], [length])
    assert watched.ids == ["1"] * 4


def test_other_slots_windows_and_batches_have_numbers_of_their_own(engine: CudaEngine) -> None:
    watched = Watched(engine)
    steps = [([0], [3]), ([1], [3]), ([0], [256]), ([0, 1], [4, 4]), ([0], [4]), ([1], [5])]
    for slots, lengths in steps:
        decode(engine, slots, lengths)
    # Slot 1 begins elsewhere while slot 0 is long, and where it was when that is short again.
    assert watched.ids == ["1", "2", "3", "4", "1", "2"]


def test_a_prompt_is_not_recorded(engine: CudaEngine) -> None:
    watched = Watched(engine)
    decode(engine, [0], [0], tokens=2)
    decode(engine, [0], [2])
    assert watched.ids == [UNRECORDED, "1"]


def test_steps_behind_the_last_number_run_unrecorded_and_the_first_ones_keep_theirs(
    engine: CudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_MAX_RECORDINGS", 2)
    monkeypatch.setattr(decoder, "_MAX_BOUND", 1)
    watched = Watched(engine)
    for slot in (0, 1, 2, 0):
        decode(engine, [slot], [0])
    assert watched.ids == ["1", "2", UNRECORDED, "1"]


def test_windows_grow_by_a_quarter_at_most() -> None:
    sizes = [decoder.window_of(needed) for needed in range(1, 200_000, 97)]
    for needed, size in zip(range(1, 200_000, 97), sizes, strict=True):
        assert needed <= size <= max(needed + 255, 1.25 * needed)
    assert len(set(sizes)) == 35
    assert sizes == sorted(sizes)
