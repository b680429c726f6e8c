"""The tool in this process, and one small artifact that all tests of the commands share."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.outcome import status_of
from tool import app


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one call of the tool left."""

    status: int
    stdout: str
    stderr: str


Tool = Callable[..., Outcome]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    """Call the tool with some words, as `main` does."""

    def call(*words: str | Path) -> Outcome:
        capsys.readouterr()
        status = status_of(app, [str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(status=status, stdout=captured.out, stderr=captured.err)

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that must not be changed."""
    folder = tmp_path_factory.mktemp("commands") / "checkpoint"
    done = CliRunner().invoke(app, ["synth", "tiny", str(folder), "--seed", "1"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="session")
def artifact(checkpoint: Path) -> Path:
    """An artifact that must not be changed: all layers in fp32, two slots of 2048 tokens."""
    folder = checkpoint.with_name("artifact")
    limits = ["--max-kv-cache-capacity", "2048", "--max-batch-size", "2", "--prefill-chunk", "64"]
    words = ["compile", str(checkpoint), str(folder), "--recipe", "fp32", *limits]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split() == ["artifact", str(folder)]
    return folder


@pytest.fixture
def artifact_copy(artifact: Path, tmp_path: Path) -> Path:
    """The artifact again, to be changed."""
    return shutil.copytree(artifact, tmp_path / "copy")
