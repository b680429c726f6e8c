"""The help answers at once: no verb's --help loads a heavy module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    *("tensorrt", "tensorrt_rtx", "safetensors", "huggingface_hub"),
    *("numpy", "PIL", "tiktoken", "jinja2"),
}

ASK_EVERY_VERB = """
import json, sys
import typer
from {module} import app

def ask(command, words):
    try:
        app([*words, "--help"])
    except SystemExit as end:
        assert not end.code, words
    for name, child in getattr(command, "commands", {{}}).items():
        ask(child, [*words, name])

ask(typer.main.get_command(app), [])
print("modules:" + json.dumps(sorted(sys.modules)))
"""

PLANTED = """
import typer

app = typer.Typer()

@app.command()
def quick() -> None:
    import numpy

@app.command()
def slow() -> None:
    {statement}

{module_level}
"""


def run_python(*arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def modules_after_help(module: str, folder: Path) -> set[str]:
    """The modules that a fresh interpreter holds after every verb of `module.app` gave its help."""
    done = run_python("-c", ASK_EVERY_VERB.format(module=module), folder=folder)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("modules:")[2]))


def test_help_is_printed_with_status_zero() -> None:
    done = run_python("tool.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "compile" in done.stdout
    assert "run" in done.stdout


def test_an_unknown_verb_is_a_usage_error() -> None:
    done = run_python("tool.py", "bake")
    assert done.returncode == 2
    assert "bake" in done.stderr
    assert done.stdout == ""


def test_no_help_loads_a_heavy_module() -> None:
    assert modules_after_help("tool", ROOT) & HEAVY == set()


@pytest.mark.parametrize(
    ("statement", "module_level", "loaded"),
    [("import jinja2", "", set()), ("pass", "import jinja2", {"jinja2"})],
)
def test_the_guard_sees_a_module_loaded_at_the_top_only(
    statement: str, module_level: str, loaded: set[str], tmp_path: Path
) -> None:
    source = PLANTED.format(statement=statement, module_level=module_level)
    (tmp_path / "planted.py").write_text(source)
    assert modules_after_help("planted", tmp_path) & HEAVY == loaded
