"""The journal of a stopped run: damaged, of other inputs, among files that are not ours."""

import json
import shutil
from pathlib import Path

import pytest

from .conftest import WarmTool, assert_named_error, leftovers, tree
from .warm_tool import FLAGS

JOURNAL = ".export.journal"


@pytest.fixture
def stopped(tool: WarmTool, checkpoint: Path, tmp_path: Path) -> Path:
    """An export that was killed while it wrote the graphs."""
    folder = tmp_path / "stopped"
    assert tool("export", checkpoint, folder, dies_at=60).status == -9
    assert len((folder / JOURNAL).read_bytes().splitlines()) > 10
    return folder


DAMAGES = {
    "cut in the middle of its last line": lambda journal: journal[:-20],
    "cut before its last line end": lambda journal: journal[:-1],
    "cut to its first line": lambda journal: journal.splitlines(keepends=True)[0],
    "with zeros at its end": lambda journal: journal + bytes(30),
    "with bytes that are no text": lambda journal: journal + b"\xff\xfe{\n",
    "with a line of another kind": lambda journal: journal + b'{"file": "x"}\n[1]\n',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_a_journal(
    damage: str, tool: WarmTool, checkpoint: Path, artifact: Path, stopped: Path
) -> None:
    journal = stopped / JOURNAL
    journal.write_bytes(DAMAGES[damage](journal.read_bytes()))
    killed = tool("compile", checkpoint, stopped, *FLAGS, dies_at=8)
    assert killed.status == -9
    assert tool("compile", checkpoint, stopped, *FLAGS).status == 0
    assert tree(stopped) == tree(artifact)
    assert leftovers(stopped) == []


def test_a_file_that_was_lost_or_cut_after_it_was_noted_is_made_again(
    tool: WarmTool, checkpoint: Path, artifact: Path, stopped: Path
) -> None:
    weights = stopped / "graphs" / "weights"
    (weights / "vision.bin").unlink()
    (weights / "head.bin").write_bytes((weights / "head.bin").read_bytes()[:-1])
    assert tool("compile", checkpoint, stopped, *FLAGS).status == 0
    assert tree(stopped) == tree(artifact)


def test_lowered_weights_that_were_lost_after_they_were_noted_are_made_again(
    tool: WarmTool, artifact: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    assert tool("export", checkpoint, folder).status == 0
    whole = tool("build", shutil.copytree(folder, tmp_path / "whole"), *FLAGS).events
    at_manifest = whole.index("before manifest.json")
    for lost in ("weights/layer_01.cpu.bin", "head.cpu.onnx"):
        assert tool("build", folder, *FLAGS, dies_at=at_manifest).status == -9
        (folder / "graphs" / lost).unlink()
        at_manifest = 4
    assert tool("build", folder, *FLAGS).status == 0
    assert tool("verify", folder).status == 0
    assert tree(folder) == tree(artifact)


def test_an_unfinished_run_with_other_inputs_is_refused(
    tool: WarmTool, checkpoint: Path, stopped: Path
) -> None:
    before = tree(stopped)
    done = tool("export", checkpoint, stopped, "--recipe", "fp16")
    assert_named_error(done, str(stopped), "unfinished export with other inputs", "recipe")
    assert tree(stopped) == before
    (stopped / JOURNAL).write_bytes(b"")
    assert_named_error(tool("export", checkpoint, stopped), "unfinished export with other inputs")


def test_an_unfinished_build_of_something_else_is_begun_anew_without_what_it_made(
    tool: WarmTool, steps: dict[str, Path], artifact: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(steps["export"], tmp_path / "folder")
    made, others = folder / "graphs" / "old.cpu.onnx", folder / "graphs" / "notes.txt"
    for path in (made, others):
        path.write_bytes(b"1")
    lines = [{"key": "0"}, {"file": "graphs/old.cpu.onnx", "bytes": 1, "sha256": "0"}]
    (folder / ".build-cpu.journal").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert tool("build", folder, *FLAGS).status == 0
    assert tool("verify", folder).status == 0
    assert not made.exists()
    assert tree(folder) == {**tree(artifact), "graphs/notes.txt": b"1"}


@pytest.mark.parametrize("stage", ["export", "compile"])
def test_a_folder_with_files_of_someone_else_is_refused_and_left_alone(
    stage: str, tool: WarmTool, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("mine")
    done = tool(stage, checkpoint, tmp_path)
    assert_named_error(done, str(tmp_path), "not empty and not an artifact (found 'letters')")
    assert tree(tmp_path) == {"letters/one.txt": b"mine"}


def test_files_of_someone_else_outlive_a_compile_that_goes_on_around_them(
    tool: WarmTool, checkpoint: Path, stopped: Path
) -> None:
    (stopped / "graphs" / "notes.txt").write_text("mine")
    assert tool("compile", checkpoint, stopped, *FLAGS).status == 0
    assert (stopped / "graphs" / "notes.txt").read_text() == "mine"


def test_another_recipe_into_a_finished_artifact_is_refused_by_name(
    tool: WarmTool, checkpoint: Path, copied: Path
) -> None:
    before = tree(copied)
    done = tool("compile", checkpoint, copied, "--recipe", "bf16")
    assert_named_error(done, str(copied), "holds an artifact with another recipe")
    done = tool("compile", checkpoint, copied, "--layers", "0", "--taps")
    assert_named_error(done, str(copied), "holds an artifact with another layers, taps")
    assert tree(copied) == before


def test_another_checkpoint_into_a_finished_artifact_is_refused_by_name(
    tool: WarmTool, checkpoint: Path, copied: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    done = tool("compile", other, copied)
    assert_named_error(done, str(copied), "holds an artifact with another source")
