"""No room and no permission: one line with the cure, nothing half-written, and a way to go on."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import KimiVLError
from runtime.files import disk_errors_named

from .conftest import (
    IS_ROOT,
    WarmTool,
    allow_writing,
    assert_named_error,
    forbid_writing,
    leftovers,
    tree,
)
from .warm_tool import FLAGS

SPARE_BYTES = 24 << 10
"""Less than any stage writes but for its figures."""

Mount = Callable[[int], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Make a disk of some bytes; where that is not permitted, the limit on files must do."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size_bytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mount is not permitted ({done.stderr.strip()}); ulimit -f is tested")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def sizes(artifact: Path) -> dict[str, int]:
    """Bytes of the weights of the export, and of the whole artifact, in pages."""

    def pages(paths: Iterator[Path]) -> int:
        return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths if path.is_file())

    weights = artifact / "graphs" / "weights"
    exported = (path for path in weights.iterdir() if ".cpu." not in path.name)
    return {"weights": pages(exported), "whole": pages(artifact.rglob("*"))}


def fill(disk: Path, spare_bytes: int) -> Path:
    """Leave only some bytes free."""
    filler = disk.parent / "disk" / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - spare_bytes)))
    return filler


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tool: WarmTool, checkpoint: Path, sizes: dict[str, int], mount: Mount
) -> None:
    disk = mount(sizes["weights"] // 2)
    done = tool("compile", checkpoint, disk / "new", *FLAGS)
    assert_named_error(done, f"{disk / 'new'}: the weights need", "the disk has", "free some")
    assert list(disk.iterdir()) == []


def test_an_export_on_a_full_disk_goes_on_when_there_is_room(
    tool: WarmTool, checkpoint: Path, artifact: Path, sizes: dict[str, int], mount: Mount
) -> None:
    disk = mount(sizes["whole"] + (256 << 10))
    filler = fill(disk, sizes["weights"] + SPARE_BYTES)
    words = ("compile", checkpoint, disk / "new", *FLAGS)
    assert_named_error(tool(*words), "no space left on the disk", f"{disk / 'new'}", "free some")
    assert not list(disk.rglob("*.part"))
    assert not (disk / "new" / "manifest.json").exists()
    assert_named_error(tool(*words), f"{disk / 'new'}", "free some")
    filler.unlink()
    assert tool(*words).status == 0
    assert tree(disk / "new") == tree(artifact)
    assert leftovers(disk) == []


@pytest.mark.parametrize("stage", ["build", "verify"])
def test_a_stage_on_a_full_disk_leaves_an_artifact_as_it_was(
    stage: str,
    tool: WarmTool,
    steps: dict[str, Path],
    artifact: Path,
    sizes: dict[str, int],
    mount: Mount,
) -> None:
    disk = mount(sizes["whole"] + (256 << 10))
    folder = shutil.copytree(steps[{"build": "export", "verify": "build"}[stage]], disk / "new")
    before = (folder / "manifest.json").read_bytes()
    filler = fill(disk, SPARE_BYTES if stage == "build" else 0)
    flags = FLAGS if stage == "build" else ()
    assert_named_error(tool(stage, folder, *flags), "no space left on the disk", str(folder))
    assert not list(disk.rglob("*.part"))
    assert (folder / "manifest.json").read_bytes() == before
    filler.unlink()
    assert tool("build", folder, *FLAGS).status == 0
    assert tool("verify", folder).status == 0
    assert tree(folder) == tree(artifact)


@pytest.mark.parametrize("limit", [1_000, 5_000, 190_000, 200_000, 215_000])
def test_a_limit_on_the_size_of_files_is_one_line(
    limit: int, tool: WarmTool, checkpoint: Path, artifact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    words = ("compile", checkpoint, folder, *FLAGS)
    done = tool(*words, max_file_bytes=limit)
    assert_named_error(done, f"{folder}", "larger than files may be here", "ulimit -f")
    assert not list(tmp_path.rglob("*.part"))
    assert tool(*words).status == 0
    assert tree(folder) == tree(artifact)


def test_a_build_under_a_limit_on_the_size_of_files_is_one_line(
    tool: WarmTool, steps: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(steps["export"], tmp_path / "new")
    before = tree(folder)
    done = tool("build", folder, *FLAGS, max_file_bytes=200_000)
    assert_named_error(done, "layer_01.cpu.bin", "larger than files may be here")
    assert not list(folder.rglob("*.part"))
    assert tree(folder).items() >= before.items()


@pytest.fixture
def locked(open_root: Path) -> Iterator[Path]:
    """A folder that an unprivileged user may read and not write."""
    folder = open_root / "locked"
    folder.mkdir()
    folder.chmod(0o755 if IS_ROOT else 0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written_is_one_line(
    tool: WarmTool, checkpoint: Path, locked: Path
) -> None:
    for folder in (locked, locked / "new", locked / "deep" / "new"):
        done = tool("compile", checkpoint, folder, *FLAGS, is_nobody=IS_ROOT)
        assert_named_error(done, str(folder), "no permission to write; choose a folder that you")
    assert list(locked.iterdir()) == []


def test_a_read_only_file_system_is_told_from_a_lack_of_permission(tmp_path: Path) -> None:
    with (
        pytest.raises(KimiVLError, match="file system that is read-only here"),
        disk_errors_named(tmp_path),
    ):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))


def test_a_folder_that_may_not_be_entered_is_one_line(
    tool: WarmTool, checkpoint: Path, locked: Path
) -> None:
    closed = locked.with_name("closed")
    closed.mkdir(0o700 if IS_ROOT else 0)
    for words in (("export", checkpoint, closed / "new"), ("run", closed / "new", "hi")):
        assert_named_error(tool(*words, is_nobody=IS_ROOT), str(closed / "new"))
    closed.rmdir()


def test_a_finished_artifact_that_may_not_be_written_is_not_built_for_other_limits(
    tool: WarmTool, artifact: Path, locked: Path
) -> None:
    folder = locked / "artifact"
    locked.chmod(0o755)
    shutil.copytree(artifact, folder)
    forbid_writing(folder)
    before = tree(folder)
    words = ("build", folder, "--max-kv-cache-capacity", "128")
    done = tool(*words, is_nobody=IS_ROOT)
    assert_named_error(done, str(folder), "no permission to write")
    assert tree(folder) == before
    allow_writing(folder)


def test_a_file_that_may_not_be_read_is_named(tool: WarmTool, artifact: Path, locked: Path) -> None:
    folder = locked / "artifact"
    locked.chmod(0o755)
    shutil.copytree(artifact, folder)
    (folder / "graphs" / "head.onnx").chmod(0o000)
    done = tool("run", folder, "hi", is_nobody=IS_ROOT)
    assert_named_error(done, "graphs/head.onnx cannot be read: Permission denied")
    (folder / "manifest.json").chmod(0o000)
    assert_named_error(tool("run", folder, "hi", is_nobody=IS_ROOT), "Permission denied")
