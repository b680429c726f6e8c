"""An artifact needs nothing but its folder, wherever that is."""

import shutil
from pathlib import Path

import pytest

from .conftest import IS_ROOT, WarmTool, allow_writing, forbid_writing, tree
from .warm_tool import FLAGS

PICTURE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
NAMES = ["a b", "with 'quotes' \"and\" $HOME", "グラフ-é-🙂", "-dash", "x" * 200, "[bold]%s{}\\n"]


def answer(tool: WarmTool, artifact: Path, *, is_nobody: bool = False) -> str:
    """Ask about a picture; the random model's answer is the same each time."""
    flags = ("--temperature", "0", "--max-new-tokens", "4", "--image", PICTURE)
    done = tool("run", *flags, "--", artifact, "What is it?", is_nobody=is_nobody)
    assert done.status == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def expected(tool: WarmTool, artifact: Path) -> str:
    """What the artifact says where it was made."""
    text = answer(tool, artifact)
    assert text.strip()
    return text


def test_an_artifact_runs_and_verifies_without_its_checkpoint_and_in_another_place(
    tool: WarmTool, checkpoint: Path, artifact: Path, expected: str, tmp_path: Path
) -> None:
    own = shutil.copytree(checkpoint, tmp_path / "own")
    made = tmp_path / "made"
    assert tool("compile", own, made, *FLAGS).status == 0
    assert tree(made) == tree(artifact)
    shutil.rmtree(own)
    assert answer(tool, made) == expected
    moved = made.rename(tmp_path / "moved")
    assert answer(tool, moved) == expected
    copied = shutil.copytree(moved, tmp_path / "deep" / "copied")
    shutil.rmtree(moved)
    assert answer(tool, copied) == expected
    assert tool("build", copied, "--max-kv-cache-capacity", "300").status == 0
    assert tool("verify", copied).status == 0


@pytest.mark.parametrize("name", NAMES)
def test_any_name_will_do_for_a_folder(
    name: str, tool: WarmTool, checkpoint: Path, artifact: Path, expected: str, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / f"{name}.source")
    folder = tmp_path / name
    done = tool("compile", *FLAGS, "--", source, folder)
    assert done.status == 0, done.stderr
    assert tree(folder) == tree(artifact)
    assert answer(tool, folder) == expected


@pytest.mark.parametrize("is_checked", [True, False])
def test_an_artifact_that_may_not_be_written_runs_and_verifies(
    is_checked: bool, tool: WarmTool, artifact: Path, expected: str, open_root: Path
) -> None:
    folder = shutil.copytree(artifact, open_root / f"read-only-{is_checked}")
    if not is_checked:
        (folder / ".checked.json").unlink()
    forbid_writing(folder)
    before = sorted(folder.rglob("*"))
    assert answer(tool, folder, is_nobody=IS_ROOT) == expected
    verified = tool("verify", folder, is_nobody=IS_ROOT)
    assert verified.status == 0, verified.stderr
    assert sorted(folder.rglob("*")) == before
    allow_writing(folder)
