"""A recipe of nothing but an int8 cache and an int8 embedding table, on the trained model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calibration.data.conversations import Conversations, DataOptions
from calibration.verify import verify_artifact
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.graphs import EMBEDDING_TENSOR
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.names import CACHE, CACHE_KEYS, CACHE_SCALES
from tool import app

RECIPE = """
[parts.embedding]
weights = "int8"
[parts.cache]
latent = "int8"
group = 32
"""
TOLERANCE = 1e-4
"""Of the largest logit: the same sums over one slot and over three, in another order."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kv8")
    (folder / "mine.toml").write_text(RECIPE)
    words = ["compile", str(HERE / "checkpoint"), str(folder / "made")]
    recipe = ["--recipe", str(folder / "mine.toml"), "--data", "nano-calibration"]
    few = ["--held-out", "nano", "--max-samples", "8", "--max-held-out", "12"]
    limits = ["--max-batch-size", "3", "--max-kv-cache-capacity", "256"]
    done = CliRunner().invoke(app, [*words, *recipe, *few, *limits])
    assert done.exit_code == 0, done.output
    return folder / "made"


def test_the_target_loses_what_the_modules_said(made: Path) -> None:
    manifest = Artifact.open(made).manifest
    said, measured = manifest.calibration["price"]["kl_mean"], manifest.prices["cpu"]["kl_mean"]
    assert 0 < said < 1e-3
    assert measured == pytest.approx(said, rel=0.05)
    quality = json.loads((made / "calibration" / "quality.json").read_text())
    for graph in ("embedding", "layer_00", "layer_02"):
        assert 0 < quality["graphs"][graph]["recipes"]["mine"]["error"] < 0.2


def test_turns_of_conversations_are_measured_through_the_engine_and_told_in_the_report(
    made: Path,
) -> None:
    quality = json.loads((made / "calibration" / "quality.json").read_text())
    turns = quality["graphs"]["head"]["recipes"]["mine"]["turns"]
    manifest = Artifact.open(made).manifest
    assert [turn["turn"] for turn in turns] == [1, 2, 3, 4]
    for turn in turns[:2]:
        measured = manifest.prices["cpu"][f"turn_{turn['turn']}_kl_mean"]
        assert measured == pytest.approx(turn["kl_mean"], rel=0.2, abs=1e-6)
    page = (made / "calibration" / "report.html").read_text()
    assert "Turn by turn" in page
    assert "mean KL through target cpu (nats)" in page


def test_a_report_with_prices_stays_as_it_is_when_they_are_measured_again(made: Path) -> None:
    files = [made / "manifest.json", made / "calibration" / "report.html"]
    before = [path.read_bytes() for path in files]
    options = DataOptions(data="nano-calibration", held_out="nano", max_samples=8, max_held_out=12)
    verify_artifact(made, held_out=Conversations.load(options).held_out)
    assert [path.read_bytes() for path in files] == before


def test_verify_reads_codes_and_scales_of_the_table(made: Path) -> None:
    assert Artifact.open(made).manifest.parity["cpu"]["embedding"] == 0.0


def test_the_manifest_lists_the_cache_as_it_is(made: Path) -> None:
    tensors = Artifact.open(made).manifest.targets["cpu"].cache.tensors
    assert {name: (one.dtype, one.width) for name, one in tensors.items()} == {
        CACHE: ("int8", 128),
        CACHE_KEYS: ("float32", 16),
        CACHE_SCALES: ("float32", 4),
    }


def test_embedded_ids_are_the_nearest_rows_of_codes(made: Path) -> None:
    table = Checkpoint.open(HERE / "checkpoint").tensor(EMBEDDING_TENSOR).float()
    ids = np.array([5, 0, 700, 5])
    rows = table[torch.from_numpy(ids)].numpy()
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    found = CpuEngine(Artifact.open(made), num_threads=1).embed(ids)
    np.testing.assert_allclose(found, np.round(rows / scales) * scales, rtol=1e-6)


def test_slots_of_different_lengths_do_not_touch_each_other(made: Path) -> None:
    engine = CpuEngine(Artifact.open(made), num_threads=1)
    random = np.random.default_rng(0)
    texts = [random.integers(0, 700, length) for length in (21, 4, 13)]

    for slot, ids in enumerate(texts):
        start, none = np.zeros(1, np.int64), np.zeros(0, np.int64)
        engine.step([slot], engine.embed(ids[:-1])[None], start, none)

    lengths = np.array([len(ids) - 1 for ids in texts])
    last = np.stack([engine.embed(ids[-1:]) for ids in texts])
    together = engine.step([0, 1, 2], last, lengths, np.arange(3))
    for slot, ids in enumerate(texts):
        start, row = np.zeros(1, np.int64), np.array([len(ids) - 1])
        expected = engine.step([slot], engine.embed(ids)[None], start, row)[0]
        assert np.abs(together[slot] - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_the_report_names_both_formats(made: Path) -> None:
    page = (made / "calibration" / "report.html").read_text()
    for words in ("latents of older tokens", "int8/32", "rows of token ids"):
        assert words in page
