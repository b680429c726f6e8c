"""Nano through the engine with the library: stock ops' answers, in any arrangement of slots."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cpu.weights_place import WeightsPlace
from runtime.engine.protocol import FloatArray
from runtime.session import Session
from tool import app

NANO = Path(__file__).parents[3] / "examples" / "nano" / "checkpoint"
SAME = 0.02
"""Of the largest logit, for nine tokens in ten: a sum in another order may round to the next code,
and then a token may go to another expert."""
CLOSE = 0.05
"""Of the largest logit, for half of the tokens: the attention kernel rounds to 8 bits, stock ops do
not, and where two experts are nearly as good a token may go to the other one."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ops") / "artifact"
    words = ["compile", str(NANO), str(folder), "--recipe", "int4-kv8", "--data"]
    words += ["nano-calibration", "--max-kv-cache-capacity", "256", "--max-batch-size", "3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def stock(artifact: Path) -> CpuEngine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIMIVL_OPS", "off")
        return CpuEngine(Artifact.open(artifact), num_threads=1)


@pytest.fixture(scope="module", params=["packed", "mapped"])
def fast(
    artifact: Path, stock: CpuEngine, library: Path, request: pytest.FixtureRequest
) -> CpuEngine:
    place: WeightsPlace = request.param
    assert library.exists()
    return CpuEngine(Artifact.open(artifact), num_threads=2, weights=place)


def embedded(engine: CpuEngine, seed: int, batch: int, tokens: int) -> FloatArray:
    ids = np.random.default_rng(seed).integers(0, 400, batch * tokens)
    return engine.embed(ids).reshape(batch, tokens, -1)


def step(
    engine: CpuEngine, slots: list[int], tokens: int, lengths: list[int], seed: int
) -> FloatArray:
    hidden = embedded(engine, seed, len(slots), tokens)
    rows = np.arange(len(slots) * tokens)
    return engine.step(slots, hidden, np.array(lengths, dtype=np.int64), rows)


def test_slots_that_are_and_that_are_no_neighbours_give_what_each_gives_alone(
    artifact: Path, fast: CpuEngine
) -> None:
    alone, lengths = CpuEngine(Artifact.open(artifact), num_threads=1), [0, 0, 0]
    plan = [([0], 9), ([2], 4), ([1], 30), ([0, 1, 2], 1), ([0, 2], 1), ([2, 0], 3), ([1, 2], 1)]
    errors: list[float] = []
    for turn, (slots, tokens) in enumerate(plan * 2):
        hidden = embedded(fast, turn, len(slots), tokens)
        before = np.array([lengths[slot] for slot in slots], dtype=np.int64)
        found = fast.step(slots, hidden, before, np.arange(len(slots) * tokens))
        for place, slot in enumerate(slots):
            own = slice(place, place + 1)
            expected = alone.step([slot], hidden[own], before[own], np.arange(tokens))
            together = found[place * tokens : (place + 1) * tokens]
            errors += list(np.abs(together - expected).max(axis=1) / np.abs(expected).max())
            lengths[slot] += tokens
    assert np.mean(np.array(errors) < SAME) > 0.9


def test_a_prompt_gives_what_stock_ops_give(stock: CpuEngine, fast: CpuEngine) -> None:
    expected, found = step(stock, [0], 40, [0], 3), step(fast, [0], 40, [0], 3)
    errors = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(errors) < CLOSE


def test_a_prefix_can_be_copied_to_another_slot(fast: CpuEngine) -> None:
    step(fast, [0], 12, [0], 1)
    fast.copy_prefix(0, 1, 12)
    first, second = step(fast, [0], 1, [12], 2), step(fast, [1], 1, [12], 2)
    assert (first == second).all()


def test_answers_are_those_of_stock_ops(artifact: Path, library: Path) -> None:
    session = Session.open(artifact, num_threads=2)
    picture = NANO.parents[1] / "numbers.png"
    content = [
        {"type": "image", "image": str(picture)},
        {"type": "text", "text": "Add the numbers."},
    ]
    prompt = session.encode([{"role": "user", "content": content}])
    text = "".join(piece.text for piece in session.generate(prompt) if piece.channel == "answer")
    assert library.exists()
    assert text.strip() == "85"
