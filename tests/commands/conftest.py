"""The tool in this process, as `main` calls it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@pytest.fixture
def artifact_copy(artifact: Path, tmp_path: Path) -> Path:
    """The artifact again, to be changed."""
    return shutil.copytree(artifact, tmp_path / "copy")
