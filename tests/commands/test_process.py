"""The tool as a process: signals, pipes, full disks, terminals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The handler is set again: a child of a background job starts with Ctrl-C ignored.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from tool import main; main()"
)
SLOW_START = """
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            print("loading", flush=True)
            time.sleep(20)
sys.meta_path.insert(0, Finder())
runpy.run_path("tool.py", run_name="__main__")
"""
ENDLESS = ["--temperature", "1", "--seed", "1"]


def start(*words: str | Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", START, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe)


def test_without_arguments_the_help_is_printed() -> None:
    command = [sys.executable, "tool.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: tool.py [OPTIONS] COMMAND")


def test_text_streams_and_ctrl_c_ends_it_with_130(artifact: Path) -> None:
    process = start("run", artifact, "hello", *ENDLESS)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    is_running = process.poll() is None
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert first
    assert is_running, "the first piece came before the last"
    assert (process.returncode, errors) == (130, b"interrupted\n")
    assert rest.endswith(b"\n")


def test_ctrl_c_ends_a_piped_chat_with_130(artifact: Path) -> None:
    command = [sys.executable, "-c", START, "chat", str(artifact), *ENDLESS]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"interrupted\n")


def test_ctrl_c_while_modules_load_leaves_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_START], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 7) == b"loading"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (-signal.SIGINT, b"")  # 130 to a shell


@pytest.mark.parametrize("verb", ["run", "inspect"])
def test_a_reader_that_leaves_early_is_no_error(artifact: Path, verb: str) -> None:
    words = [verb, str(artifact), *(["hello", *ENDLESS] if verb == "run" else [])]
    process = start(*words)
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    assert errors == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_stdout_is_one_line(artifact: Path) -> None:
    command = [sys.executable, "tool.py", "inspect", str(artifact)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: no space left on the disk")
    assert "Traceback" not in done.stderr


def test_inspect_loads_neither_torch_nor_onnx(artifact: Path) -> None:
    ask = (
        "import sys; from commands.outcome import status_of; from tool import app; "
        f"assert status_of(app, ['inspect', {str(artifact)!r}]) == 0; "
        "assert not {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_ascii_terminals_see_escapes_instead_of_a_traceback(artifact: Path) -> None:
    words = ["run", str(artifact), "hello", "--max-new-tokens", "32", *ENDLESS]
    done = subprocess.run(
        [sys.executable, "tool.py", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"\\ufffd" in done.stdout
