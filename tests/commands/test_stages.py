"""The verbs that make and judge artifacts: what they print, and that they only print that."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from calibration.tolerances import GRAPH_FP32
from commands import inspect, options, progress
from runtime.artifact.manifest import FILE_NAME, Manifest
from runtime.files import sha256_of
from runtime.progress import silent

from .conftest import Tool

GRAPHS = {"vision", "projector", "layer_00", "layer_01", "layer_02", "head"}


def read_manifest(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
    return fields


def forget_target(folder: Path) -> None:
    """Make an artifact one that was exported and not yet built."""
    fields = read_manifest(folder) | {"targets": {}, "parity": {}}
    for name in [name for name in fields["files"] if ".cpu." in name]:
        (folder / name).unlink()
        del fields["files"][name]
    (folder / FILE_NAME).write_text(json.dumps(fields))


def test_synth_prints_what_it_wrote_and_says_what_comes_next(tool: Tool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    done = tool("synth", "tiny", folder, "--lazy", "--seed", "7", "--json")
    result = json.loads(done.stdout)
    assert result["files"] == len(list(folder.iterdir()))
    assert result["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert (result["seed"], result["dtype"]) == (7, "bfloat16")
    assert done.stderr == f"next: python tool.py compile {folder} ARTIFACT\n"


def test_compiling_again_changes_nothing(tool: Tool, checkpoint: Path, artifact: Path) -> None:
    before = (artifact / FILE_NAME).read_bytes()
    limits = ["--max-kv-cache-capacity", "2048", "--max-batch-size", "2", "--prefill-chunk", "64"]
    done = tool("compile", checkpoint, artifact, *limits, "--json")
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    assert (artifact / FILE_NAME).read_bytes() == before
    files = [path for path in artifact.rglob("*") if path.is_file()]
    assert result["files"] == len([path for path in files if not path.name.startswith(".")])
    assert 0 < result["largest_error"] <= GRAPH_FP32
    assert result["layers"] == [0, 1, 2]
    assert done.stderr.startswith(f"next: python tool.py run {artifact} --image PICTURE ")


def test_limits_that_are_left_out_stay_as_the_target_has_them(
    tool: Tool, checkpoint: Path, artifact_copy: Path
) -> None:
    before = read_manifest(artifact_copy)["targets"]["cpu"]["limits"]
    assert (before["max_tokens"], before["max_slots"], before["prefill_chunk"]) == (2048, 2, 64)
    for words in (("build",), ("compile", checkpoint)):
        slots = 4 if words == ("build",) else 5
        done = tool(*words, artifact_copy, "--max-batch-size", str(slots), "--json")
        assert done.status == 0, done.stderr
        expected = {**before, "max_slots": slots}
        assert read_manifest(artifact_copy)["targets"]["cpu"]["limits"] == expected
        if words == ("build",):
            assert json.loads(done.stdout).items() >= expected.items()


def test_export_reuses_what_is_there(tool: Tool, checkpoint: Path, artifact: Path) -> None:
    done = tool("export", checkpoint, artifact, "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["recipe"] == "fp32"


def test_what_runs_on_a_card_is_said_to_run_where_there_is_one(
    tool: Tool, checkpoint: Path, artifact_copy: Path
) -> None:
    done = tool("compile", checkpoint, artifact_copy, "--target", "cuda")
    assert done.status == 0, done.stderr
    assert done.stderr.startswith(
        "next, on a machine with such a card, to which you may copy the artifact: "
        f"python tool.py run {artifact_copy} --target cuda --image PICTURE "
    )


def test_build_fixes_the_limits_that_the_flags_name(tool: Tool, artifact_copy: Path) -> None:
    forget_target(artifact_copy)
    flags = {
        "--max-kv-cache-capacity": "300",
        "--max-input-len": "200",
        "--max-batch-size": "3",
        "--max-image-tokens": "17",
        "--prefill-chunk": "32",
    }
    done = tool("build", artifact_copy, *(word for pair in flags.items() for word in pair))
    assert done.status == 0, done.stderr
    assert read_manifest(artifact_copy)["targets"]["cpu"]["limits"] == {
        "max_tokens": 300,
        "max_input_tokens": 200,
        "max_slots": 3,
        "max_patches": 4 * 17,
        "prefill_chunk": 32,
    }
    assert done.stderr == f"next: python tool.py verify {artifact_copy} --target cpu\n"


def test_verify_prints_every_graph_with_its_error_and_what_is_allowed(
    tool: Tool, artifact: Path
) -> None:
    table = tool("verify", artifact)
    assert (table.status, table.stderr) == (0, "")
    head, *rows = [line.split() for line in table.stdout.splitlines()]
    assert head == ["graph", "error", "allowed"]
    assert {row[0] for row in rows} == GRAPHS | {"embedding"}
    limits = {name: float(allowed) for name, _, allowed in rows}
    assert limits == {**dict.fromkeys(GRAPHS, GRAPH_FP32), "embedding": 0.0}
    assert all(float(error) <= limits[name] for name, error, _ in rows)
    graphs = json.loads(tool("verify", artifact, "--json").stdout)["graphs"]
    assert graphs.keys() == GRAPHS | {"embedding"}
    assert all(graph["error"] <= graph["allowed"] for graph in graphs.values())


def test_verify_sees_one_changed_byte_of_the_weights(tool: Tool, artifact_copy: Path) -> None:
    path = artifact_copy / "graphs" / "weights" / "layer_01.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    done = tool("verify", artifact_copy)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "graphs/weights/layer_01.bin does not have the SHA-256" in done.stderr


def test_inspect_gives_the_manifest_and_its_hash(tool: Tool, artifact: Path) -> None:
    result = json.loads(tool("inspect", artifact, "--json").stdout)
    assert result["manifest"] == read_manifest(artifact)
    assert result["manifest_sha256"] == sha256_of(artifact / FILE_NAME)


def test_inspect_names_every_file_and_every_graph(tool: Tool, artifact: Path) -> None:
    done = tool("inspect", artifact)
    assert (done.status, done.stderr) == (0, "")
    manifest = Manifest.read(artifact)
    words = done.stdout.split()
    assert {*manifest.files, *manifest.graphs, *manifest.targets["cpu"].passes} <= {
        word.rstrip(",") for word in words
    }
    assert {record.sha256[:12] for record in manifest.files.values()} <= set(words)


def test_inspect_computes_the_cache_from_its_sizes(artifact: Path) -> None:
    manifest = Manifest.read(artifact)
    (tensor,) = manifest.targets["cpu"].cache.tensors.values()
    slot_bytes = 4 * tensor.width * 2048 * 3  # fp32, tokens, layers
    expected = {"slot_bytes": slot_bytes, "total_bytes": 2 * slot_bytes}
    assert inspect.cache_bytes(manifest, "cpu") == expected


def test_without_a_terminal_nothing_is_said_about_progress(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.showing() as report, progress.waiting("opening"):
        assert report is silent
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_for_each_stage_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.showing() as report:
        report("export", 1, 4)
        report("export", 3, 4)
        report("build", 2, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = set(re.findall(r"(export|build)[^\n%]*?(\d+)%", captured.err))
    assert {("export", "75"), ("build", "100")} <= shown


def test_the_choices_of_the_flags_are_those_that_exist() -> None:
    from export.synthetic.tensors import DTYPES
    from runtime.generation.releases import RELEASES

    assert set(options.Dtype.__args__) == set(DTYPES)  # type: ignore[attr-defined]  # of a Literal
    names = {release.name for release in RELEASES}
    assert set(options.ReleaseName.__args__) == names  # type: ignore[attr-defined]  # of a Literal
