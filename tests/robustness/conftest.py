"""A warm tool, and the smallest artifact that has every kind of graph."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from export.synthetic.configs import TINY_CONFIG
from export.synthetic.folder import write_synthetic

from .warm_tool import FLAGS, Call, Outcome

ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0


class WarmTool:
    """The tool in another process; see `warm_tool`."""

    def __init__(self, checkpoint: Path, artifact: Path) -> None:
        module = "tests.robustness.warm_tool"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(checkpoint), str(artifact)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._receive().status == 0

    def __call__(
        self,
        *words: str | Path,
        dies_at: int | None = None,
        is_nobody: bool = False,
        max_file_bytes: int | None = None,
    ) -> Outcome:
        """Run a command line in a process of its own."""
        call = Call(
            words=tuple(str(word) for word in words),
            dies_at=dies_at,
            is_nobody=is_nobody,
            max_file_bytes=max_file_bytes,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(call)) + "\n")
        self.process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _receive(self) -> Outcome:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the warm tool has died; its last words are on stderr"
        return Outcome(**json.loads(line))


@pytest.fixture(scope="session")
def checkpoint(open_root: Path) -> Path:
    """One vision block, a dense layer and a MoE layer; must not be changed."""
    config = copy.deepcopy(TINY_CONFIG)
    config["vision_config"]["num_hidden_layers"] = 1
    config["text_config"]["num_hidden_layers"] = 2
    shape = open_root / "config.json"
    shape.write_text(json.dumps(config))
    return write_synthetic(open_root / "checkpoint", shape=shape, seed=3, lazy=False)


@pytest.fixture(scope="session")
def artifact(tool: WarmTool, open_root: Path) -> Path:
    """An artifact that nothing interrupted; must not be changed."""
    assert tool.process.poll() is None
    return open_root / "artifact"


@pytest.fixture(scope="session")
def tool(checkpoint: Path, open_root: Path) -> Iterator[WarmTool]:
    """Run command lines, each in a process of its own."""
    warm = WarmTool(checkpoint, open_root / "artifact")
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def open_root() -> Iterator[Path]:
    """A folder that every user may enter; those of pytest are for one user only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def steps(tool: WarmTool, checkpoint: Path, artifact: Path, open_root: Path) -> dict[str, Path]:
    """The artifact as it is after each stage, and before the first one."""
    folders = {name: open_root / f"after-{name}" for name in ("nothing", "export", "build")}
    assert tool("export", checkpoint, folders["export"]).status == 0
    shutil.copytree(folders["export"], folders["build"])
    assert tool("build", folders["build"], *FLAGS).status == 0
    return {**folders, "verify": artifact}


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    """The artifact again, to be changed."""
    return shutil.copytree(artifact, tmp_path / "copied")


def tree(folder: Path) -> dict[str, bytes]:
    """Map the path of every file to its content, but for hidden files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(".")
    }


def leftovers(folder: Path) -> list[str]:
    """List what only an unfinished run may leave."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in (".part", ".journal")
    )


def assert_named_error(done: Outcome, *words: str) -> None:
    """Check that a call ended with one line that holds these words."""
    assert (done.status, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in {done.stderr!r}"


def forbid_writing(folder: Path) -> None:
    """Make a folder and all in it read-only."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def allow_writing(folder: Path) -> None:
    """Take back what `forbid_writing` did."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
