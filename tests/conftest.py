"""One small artifact, compiled through the command line, that many tests share.

Tests run what everybody has, ONNX Runtime's stock ops; those of the library of custom ops ask for
it (`tests/runtime/ops`).
"""

import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tool import app

# Shells start what runs in the background with SIGINT ignored, and programs that the tests start
# and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["KIMIVL_OPS"] = "off"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that must not be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
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
