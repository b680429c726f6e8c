"""Servers in this process, on real sockets, with all parts at hand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import Session
from runtime.scheduling.statistics import Stats
from runtime.server.keys import ApiKeys
from runtime.server.options import ServerOptions
from runtime.server.service import Service
from runtime.server.serving import bind
from runtime.server.uvicorn_server import DrainingServer, scheduled_server, url_of

PATIENCE_S = 60.0
CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 4 + 38?"}],
    "guided_regex": "[a-z]{400}",
    "stream": True,
}
"""Goes on until the slot is full."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server."""

    url: str
    service: Service
    server: DrainingServer

    @property
    def stats(self) -> Stats:
        return self.service.scheduler.stats()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )

    def post(self, body: object, headers: dict[str, Any] | None = None) -> httpx2.Response:
        url = f"{self.url}{CHAT}"
        return httpx2.post(url, json=body, headers=headers, timeout=PATIENCE_S)

    def numbers(self) -> dict[tuple[str, ...], float]:
        """Read the metrics, by name and labels."""
        text = httpx2.get(f"{self.url}/metrics").text
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_until_idle(self) -> Stats:
        """Wait until nothing is inside, and noted; then every slot has to be free."""
        wait_until(lambda: self.service.num_inside == 0 and self.stats.num_running == 0)
        wait_until(lambda: not self.server.server_state.tasks)  # they note behind the answer
        stats = self.stats
        assert stats.num_free_slots == stats.num_slots
        assert "SlotsLost" not in stats.errors
        return stats


@contextmanager
def serving(
    session: Session, *, keys: ApiKeys | None = None, **options: object
) -> Iterator[Served]:
    """Serve a session, whose slots must all be free, on some free port of this machine."""
    given: dict[str, Any] = {"model_names": ("nano", "nano-2"), "port": 0, **options}
    chosen = ServerOptions(**given)
    listener = bind(chosen.host, chosen.port)
    is_up = threading.Event()
    with scheduled_server(session, chosen, keys, is_up.set) as server:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert is_up.wait(PATIENCE_S)
            yield Served(url=url_of(listener), service=server.service, server=server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            listener.close()


def slow_down(
    session: Session, monkeypatch: pytest.MonkeyPatch, before_step: Callable[[], None]
) -> None:
    """Call a function before every step of the engine."""
    for name in ("step", "step_greedy"):
        step = getattr(session.engine, name, None)
        if step is not None:

            def later(*words: Any, _step: Any = step) -> Any:  # noqa: ANN401  the engine's own
                before_step()
                return _step(*words)

            monkeypatch.setattr(session.engine, name, later)


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end, "what is waited for never comes"
        time.sleep(0.005)


class Pace:
    """Lets steps pass quickly, slowly, or not at all."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.pause_s = 0.0

    def __call__(self) -> None:
        assert self.open.wait(PATIENCE_S)
        if self.pause_s:
            threading.Event().wait(self.pause_s)


@contextmanager
def streaming(served: Served, **fields: object) -> Iterator[httpx2.Response]:
    body = {**ENDLESS, **fields}
    with httpx2.stream("POST", f"{served.url}{CHAT}", json=body, timeout=PATIENCE_S) as answer:
        yield answer


def events_of(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


def text_message(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def picture_message(text: str, *urls: str) -> list[Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]
