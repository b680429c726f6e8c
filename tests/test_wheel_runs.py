"""The wheel, alone in a fresh environment, runs an artifact and says the same as the checkout."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from runtime import GenerationLimits, Sampling, Session

ROOT = Path(__file__).parents[1]
QUESTION = [{"role": "user", "content": "How many?"}]
PROGRAM = """
import json, sys
from importlib.util import find_spec
from kimivl import GenerationLimits, Sampling, Session
session = Session.open(sys.argv[1])
request = session.request(
    session.encode([{"role": "user", "content": "How many?"}]),
    Sampling.greedy(),
    GenerationLimits(max_new_tokens=8),
)
text = "".join(piece.text for piece in session.stream(request))
heavy = [name for name in ("torch", "onnx", "transformers", "typer", "rich") if find_spec(name)]
print(json.dumps({"ids": request.result.ids, "text": text, "heavy": heavy}))
"""


@pytest.mark.slow
def test_the_wheel_runs_an_artifact_without_torch_and_onnx(artifact: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "runtime", source / "runtime")
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        tmp_path,
    ]
    subprocess.run([*build, source], check=True, capture_output=True)
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    wheel = next(tmp_path.glob("kimivl-*.whl"))
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    done = subprocess.run(
        [python, "-c", PROGRAM, artifact], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    _run_embedded_example(python, artifact, tmp_path)
    assert found == _answered_here(artifact)


def _answered_here(artifact: Path) -> dict[str, object]:
    session = Session.open(artifact)
    limits = GenerationLimits(max_new_tokens=8)
    request = session.request(session.encode(QUESTION), Sampling.greedy(), limits)
    text = "".join(piece.text for piece in session.stream(request))
    assert request.result is not None
    return {"ids": list(request.result.ids), "text": text, "heavy": []}


def _run_embedded_example(python: Path, artifact: Path, folder: Path) -> None:
    """The program of docs/embedded.md answers twice and says how long it took."""
    words = [python, ROOT / "examples" / "embedded.py", artifact, ROOT / "examples" / "numbers.png"]
    done = subprocess.run(
        [*words, "How many?", "--times", "2", "--max-new-tokens", "4"],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    ready, *times = done.stderr.splitlines()
    assert ready.startswith("ready after")
    assert len(times) == 2
    assert all("4 out; first after" in one for one in times)
