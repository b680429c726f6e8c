"""Connections that break, are full, or are slow, in either direction."""

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from runtime.server import body as body_module
from runtime.server import exchange
from runtime.server.exchange import ChatEndpoint
from runtime.server.record import begin_record
from tests.runtime.server.served import (
    CHAT,
    ENDLESS,
    PATIENCE_S,
    Pace,
    Served,
    streaming,
    wait_until,
)


def head_of(length: int) -> bytes:
    """The head of a request with a body of some length."""
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def connect(served: Served) -> socket.socket:
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    return socket.create_connection(address, timeout=PATIENCE_S)


def test_a_client_that_resets_the_connection_of_a_whole_answer_frees_its_slot(
    served: Served, pace: Pace
) -> None:
    pace.pause_s = 0.01
    body = json.dumps({**ENDLESS, "stream": False}).encode()
    with connect(served) as client:
        client.sendall(head_of(len(body)) + body)
        wait_until(lambda: served.stats.num_running == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stats = served.wait_until_idle()
    assert stats.ended == {"cancelled": 1}
    assert stats.new_tokens < 300


class FullConnection:
    """A client, as an application sees it, that takes a few messages and then waits."""

    def __init__(self, body: bytes) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [(b"content-type", b"application/json")],
        }
        self.sent: list[bytes] = []
        self.is_read = asyncio.Event()
        self.is_broken = False
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        begin_record(self.scope)

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop()

    async def send(self, message: Any) -> None:  # noqa: ANN401  of ASGI
        if len(self.sent) > 3:
            await self.is_read.wait()
            if self.is_broken:
                raise ConnectionResetError("planted")
        self.sent.append(message.get("body", b""))


def test_a_reader_that_takes_nothing_loses_its_request_and_delays_nobody(
    served: Served,
) -> None:
    async def ask() -> list[bytes]:
        client = FullConnection(json.dumps(ENDLESS).encode())
        endpoint = ChatEndpoint(served.service, max_waiting_pieces=8)
        task = asyncio.create_task(endpoint(client.scope, client.receive, client.send))
        while served.stats.ended.get("cancelled", 0) == 0:
            await asyncio.sleep(0.01)
        assert served.stats.num_free_slots == 4
        assert not task.done()
        client.is_read.set()
        await task
        return client.sent

    sent = asyncio.run(asyncio.wait_for(ask(), PATIENCE_S))
    last = json.loads(sent[-2].removeprefix(b"data: "))
    assert last["error"]["code"] == "slow_reader"
    assert "left 8 pieces" in last["error"]["message"]
    assert len(sent) < 20
    served.wait_until_idle()


def test_a_stream_that_waits_long_is_kept_alive_by_comments(
    served: Served, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_ALIVE_EVERY_S", 0.05)
    pace.open.clear()
    with streaming(served, guided_regex="[a-z]{3}") as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        while text.count(": waiting\n\n") < 2:
            text += next(pieces)
        assert answer.status_code == 200
        pace.open.set()
        text += "".join(pieces)
    assert text.endswith("data: [DONE]\n\n")


def test_a_body_that_does_not_come_is_a_408(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "_TIMEOUT_S", 0.1)

    with connect(served) as client:
        client.sendall(head_of(99) + b"{")
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    served.wait_until_idle()


def test_a_connection_that_breaks_while_it_is_written_to_frees_its_slot(
    served: Served, pace: Pace
) -> None:
    pace.pause_s = 0.01

    async def ask() -> None:
        client = FullConnection(json.dumps(ENDLESS).encode())
        client.is_broken = True
        client.is_read.set()
        with pytest.raises(ConnectionResetError):
            await ChatEndpoint(served.service)(client.scope, client.receive, client.send)
        while not served.stats.ended:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), PATIENCE_S))
    assert served.wait_until_idle().ended == {"cancelled": 1}


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(served: Served) -> None:
    with connect(served) as client:
        client.sendall(head_of(1 << 40))
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
    served.wait_until_idle()
