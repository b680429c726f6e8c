"""The server as a process: where it says it is, signals, its log, and the commands of its page."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.runtime.server.served import CHAT, PATIENCE_S, text_message

ROOT = Path(__file__).resolve().parents[3]
TOOL = ["tool.py", "serve"]
WHEEL = ["-m", "runtime.server"]
SECRET = "What is 4 + 38?"
PAGES = (ROOT / "README.md", ROOT / "docs" / "serving.md")
CURL = re.compile(r"```bash\n((?:curl|echo).*?)```", re.DOTALL)

pytestmark = pytest.mark.slow


@contextmanager
def server_process(
    start: list[str], artifact: Path, log: Path, *words: str
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server on some free port, and its address; stderr goes to a file."""
    command = [sys.executable, *start, str(artifact), "--port", "0", "--threads", "1", *words]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
    try:
        found = None
        while found is None:
            assert process.poll() is None, log.read_text()
            threading.Event().wait(0.05)
            found = re.search(r"serving (\S+) at (http://\S+)\n", log.read_text())
        yield process, found[2]
    finally:
        process.kill()
        process.communicate()


def run_shell(text: str, url: str) -> Any:  # noqa: ANN401  any JSON value
    text = text.replace("http://127.0.0.1:8000", url)
    done = subprocess.run(
        ["bash", "-c", text], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_pages_work_and_sigterm_lets_streams_finish(
    nano: Path, tmp_path: Path
) -> None:
    commands = CURL.findall("".join(page.read_text(encoding="utf-8") for page in PAGES))
    assert len(commands) == 3
    log = tmp_path / "log"
    with server_process(TOOL, nano, log) as (process, url):
        sums = [run_shell(text, url)["choices"][0]["message"]["content"] for text in commands]
        assert all(text.isdecimal() for text in sums)
        assert sums[2] == "85", "47 and 38, which the picture shows"
        body = {"messages": text_message(SECRET), "guided_regex": "[a-z]{400}", "stream": True}
        streams: list[str] = []

        def read(answer: httpx2.Response) -> None:
            streams.append(answer.read().decode())

        with httpx2.Client(timeout=PATIENCE_S) as client:
            answers = [
                client.send(client.build_request("POST", f"{url}{CHAT}", json=body), stream=True)
                for _ in range(4)
            ]
            process.send_signal(signal.SIGTERM)
            for answer in answers:
                read(answer)
        assert [text.rstrip().endswith("data: [DONE]") for text in streams] == [True] * 4
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (0, b"")
    lines = log.read_text().splitlines()
    assert [line[:7] for line in lines if not line.startswith("{")] == ["serving", "finishi"]
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(records) == len(commands) + len(streams)
    assert {(one["path"], one["status"]) for one in records} == {(CHAT, 200)}
    assert all(one["new_tokens"] > 0 and one["prompt_tokens"] > 0 for one in records)
    assert SECRET not in log.read_text()


def test_the_wheel_s_own_command_serves_and_a_second_ctrl_c_ends_what_runs(
    nano: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    words = ["--served-model-name", "one", "--drain-timeout", "600"]
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 99\r\nExpect: 100-continue\r\n\r\n"
    )
    with server_process(WHEEL, nano, log, *words) as (process, url):
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == "one"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.sendall(head.encode())
            assert client.recv(99).startswith(b"HTTP/1.1 100"), "its body is being waited for"
            process.send_signal(signal.SIGINT)
            while httpx2.get(f"{url}/health/ready").status_code == 200:
                threading.Event().wait(0.01)
            assert process.poll() is None, "it waits for that request"
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
    assert process.returncode == 130


def test_ctrl_c_ends_the_tool_with_130(nano: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with server_process(TOOL, nano, log) as (process, _):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert log.read_text().endswith("interrupted\n")
