"""The tool as a process: signals, pipes, full disks, terminals."""

import json
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
ENDED_AT_A_FILE = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from runtime import files
from tool import main
def end(event):
    if event == "after vision.onnx":
        os.kill(os.getpid(), {number})
files.on_event = end
main()
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


def test_sigterm_ends_an_answer_as_ctrl_c_does_with_143(artifact: Path) -> None:
    process = start("run", artifact, "hello", *ENDLESS)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, b"terminated\n")
    assert rest.endswith(b"\n")


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stage_that_is_ended_says_that_the_same_command_goes_on(
    checkpoint: Path, tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    folder = tmp_path / "new"
    program = ENDED_AT_A_FILE.format(number=int(number))
    process = subprocess.Popen(
        [sys.executable, "-c", program, "export", str(checkpoint), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (status, "")
    assert errors == f"{word}; the same command goes on\n"
    inspected = subprocess.run(
        [sys.executable, "tool.py", "inspect", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert inspected.returncode == 1
    assert "this artifact is unfinished" in inspected.stderr
    assert "the command that began it goes on" in inspected.stderr


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-"])
def test_a_closed_stdout_is_refused_before_a_file_gets_its_number(
    artifact: Path, redirect: str
) -> None:
    command = f'"$0" tool.py run "$1" hello {redirect}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(artifact)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = "" if "2>" in redirect else "error: stdout is closed, so that no result can be"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == (1 if expected else 0)


def test_a_closed_stderr_does_not_keep_an_answer_back(artifact: Path) -> None:
    command = '"$0" tool.py run "$1" hello --json --max-new-tokens 2 2>&-'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(artifact)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["usage"]["new_tokens"] == 2


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
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(artifact: Path, unbuffered: str) -> None:
    command = [sys.executable, "tool.py", "inspect", str(artifact)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no space left on the disk")


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
