"""Results in one file from several scripts, and an artifact whose last layer serves for more."""

import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks.cpu.int8 import ratios
from benchmarks.cpu.long_context import with_capacity
from benchmarks.cpu.repeated_layers import repeat_last_layer
from benchmarks.record import merge_into
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine


def test_results_keep_what_others_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    merge_into(path, {"ratios": {"decode_0": 1.5, "int8_decode_0": 1.2}, "samples": [1, 2]})
    merge_into(path, {"ratios": {"int8_decode_0": 1.3}, "samples": [3], "pictures": {"a": 1}})
    assert json.loads(path.read_text()) == {
        "ratios": {"decode_0": 1.5, "int8_decode_0": 1.3},
        "samples": [3],
        "pictures": {"a": 1},
    }


def test_a_ratio_is_the_median_of_pairs_and_above_one_where_ours_is_faster() -> None:
    pairs = [{"ours_s": 1.0, "theirs_s": 2.0}, {"ours_s": 1.0, "theirs_s": 1.5}]
    pairs.append({"ours_s": 2.0, "theirs_s": 2.4})
    assert ratios({"int8_decode_0": pairs}) == {"int8_decode_0": 1.5}


def test_an_artifact_is_opened_with_a_longer_cache_and_stays(artifact: Path) -> None:
    opened = Artifact.open(artifact)
    assert with_capacity(opened, 4096).target("cpu").limits.max_tokens == 4096
    assert Artifact.open(artifact) == opened


def test_the_last_layers_files_serve_for_more_layers(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(artifact, folder)
    repeat_last_layer(folder, 5)
    deep = Artifact.open(folder)
    assert deep.manifest.layers == (0, 1, 2, 3, 4)
    graphs = deep.target("cpu").graphs
    assert graphs["layer_04"] == graphs["layer_02"] != graphs["layer_01"]
    engines = [CpuEngine(Artifact.open(one), num_threads=1) for one in (artifact, folder)]
    hidden, start, rows = engines[0].embed(np.arange(4))[None], np.array([0]), np.array([3])
    shallow_logits, deep_logits = (one.step([0], hidden, start, rows) for one in engines)
    assert np.isfinite(deep_logits).all()
    assert np.abs(shallow_logits - deep_logits).max() > 1e-3
