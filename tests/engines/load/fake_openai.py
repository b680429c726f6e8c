"""A small endpoint in OpenAI's dialect, which does to each request what a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Write = Callable[[dict[str, Any] | str | bytes], None]
"""Sends one event of the stream, or bytes as they are."""


@dataclass(kw_only=True)
class Behaviour:
    """What is answered, and what came."""

    answer: Callable[[int, Write], None]
    """Called with the number of the request."""
    status: Callable[[int], int] = lambda number: 200
    models: tuple[str, ...] = ("kimi",)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def delta(text: str, *, name: str = "content") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {name: text}}], "usage": None}


def usage(prompt: int, new: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": new}
    return {"choices": [], "usage": {**counts, "prompt_tokens_details": details}}


def say(*texts: str, pause_s: float = 0.0, new: int | None = None) -> Callable[[int, Write], None]:
    """An answer that is right."""

    def answer(number: int, write: Write) -> None:
        write({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for text in texts:
            write(delta(text))
            time.sleep(pause_s)
        write(usage(10, len(texts) if new is None else new, cached=4))
        write("[DONE]")

    return answer


class Handler(BaseHTTPRequestHandler):
    """Answers as its server's behaviour says."""

    @property
    def behaviour(self) -> Behaviour:
        assert isinstance(self.server, FakeServer)
        return self.server.behaviour

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        models = {"data": [{"id": one} for one in self.behaviour.models]}
        self.reply(200 if self.path == "/v1/models" else 404, models)

    def do_POST(self) -> None:
        behaviour, content = self.behaviour, self.rfile.read(int(self.headers["Content-Length"]))
        with behaviour.lock:
            number = len(behaviour.bodies)
            behaviour.bodies.append(json.loads(content))
            behaviour.keys.append(self.headers.get("Authorization"))
            behaviour.now += 1
            behaviour.most_at_once = max(behaviour.most_at_once, behaviour.now)
        try:
            self.answer(number)
        finally:
            with behaviour.lock:
                behaviour.now -= 1

    def answer(self, number: int) -> None:
        status = self.behaviour.status(number)
        if status != 200:
            self.reply(status, {"error": {"message": "come again", "type": "busy"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": a comment\n\n")
        self.behaviour.answer(number, self.write)

    def write(self, event: dict[str, Any] | str | bytes) -> None:
        if not isinstance(event, bytes):
            text = event if isinstance(event, str) else json.dumps(event)
            event = f"data: {text}\n\n".encode()
        self.wfile.write(event)
        self.wfile.flush()

    def reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class FakeServer(ThreadingHTTPServer):
    """Knows what a test wants."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that go away."""


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Serve on loopback until the end of the block; gives the address."""
    server = FakeServer(behaviour)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
