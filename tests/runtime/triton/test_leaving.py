"""Clients, requests and servers that go before their time: no slot and no process is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.triton.clients import MODEL, Stream, ask, streaming
from tests.runtime.triton.conftest import NUM_SLOTS
from tests.runtime.triton.watching import PATIENCE_S, settled, wait_for, wait_for_count
from tests.triton_server import TritonServer, running_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LONG: dict[str, Any] = {"prompt": b"Count.", "regex": b"[0-9]{1900}"}
"""An answer of 1900 tokens, which takes seconds."""
CLIENT = """
import sys
from tests.runtime.triton.clients import Stream
stream = Stream(sys.argv[1])
stream.send(prompt=b"Count.", regex=b"[0-9]{1900}")
next(stream.events())
print("begun", flush=True)
sys.stdin.read()
"""


def test_cancelling_a_stream_frees_its_slots_at_once(server: TritonServer) -> None:
    before = settled(server)
    streams = [Stream(server.grpc) for _ in range(NUM_SLOTS + 2)]
    for stream in streams[:NUM_SLOTS]:
        stream.send(**LONG)
        next(stream.events())
    for stream in streams[NUM_SLOTS:]:
        stream.send(**LONG)
    wait_for(server, num_free_slots=0, num_queued=2)
    for stream in streams:
        stream.close(cancel=True)
    after = wait_for(server, num_free_slots=NUM_SLOTS, num_queued=0, num_running=0)
    assert after["new_tokens_total"] - before["new_tokens_total"] < 1900
    labels = 'model="kimi_vl",reason="cancelled"'
    wait_for_count(server, "ended_total", labels, least=NUM_SLOTS + 2)
    assert ask(server.grpc, prompt=b"Hello.", max_new_tokens=2).ids


def test_a_client_that_is_killed_frees_its_slot(server: TritonServer) -> None:
    before = settled(server)
    words = [sys.executable, "-c", CLIENT, server.grpc]
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        client.kill()
    after = settled(server)
    assert after["new_tokens_total"] - before["new_tokens_total"] < 1900


def test_a_connection_of_http_that_is_closed_frees_its_slot(server: TritonServer) -> None:
    before = settled(server)
    host, _, port = server.http.partition(":")
    body = json.dumps({"prompt": "Count.", "regex": "[0-9]{1900}"})
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: here\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert b"200 OK" in connection.recv(200)
    after = settled(server)
    assert after["new_tokens_total"] - before["new_tokens_total"] < 1900


def test_what_the_queue_has_no_place_for_is_refused_at_once(server: TritonServer) -> None:
    before = settled(server)
    stream = Stream(server.grpc)
    for number in range(NUM_SLOTS + 70):  # 64 may wait
        stream.send(str(number), **LONG)
    refused = next(outputs for _, outputs, _ in stream.events() if isinstance(outputs, str))
    assert re.search("the most; try again", refused)
    stream.close(cancel=True)
    after = settled(server)
    assert after["num_queued"] == 0
    assert 1 <= after["refused_total"] - before["refused_total"] <= 6


def test_a_request_that_takes_longer_than_it_was_given_ends_with_an_error(
    server: TritonServer,
) -> None:
    with streaming(server.grpc) as stream:
        stream.send(**LONG, timeout_us=20_000)
        answer = stream.answer()
    assert "was not answered within 0.02 s" in answer.error
    wait_for(server, num_free_slots=NUM_SLOTS)


def test_a_killed_server_leaves_no_process_behind(
    server: TritonServer, repository: Path, tmp_path: Path
) -> None:
    with running_server(repository, log=tmp_path / "log", models=[MODEL]) as second:
        children = children_of(second.pid)
        assert len(children) == 1
        os.kill(second.pid, signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while any(map(is_running, children)):
            assert time.monotonic() < end
            time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    tasks = Path("/proc", str(pid), "task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended, though nobody may have asked how."""
    try:
        return " Z " not in Path("/proc", str(pid), "stat").read_text()
    except FileNotFoundError:
        return False
