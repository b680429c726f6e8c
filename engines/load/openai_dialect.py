"""An endpoint in the dialect of OpenAI's chat API, read as it streams.

Source: https://platform.openai.com/docs/api-reference/chat (server-sent events).
"""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Timer
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import KimiVLError

from .asked import Question
from .endpoint import Heard, RequestFailedError, Used, Wishes

_SHOWN = 200
_OK = 200
_CONNECT_S = 10.0
_MAX_LINE_BYTES = 1 << 20
_MAX_BODY_BYTES = 1 << 20
"""Of answers that do not stream."""
_BROKEN = (OSError, http.client.HTTPException)
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_TEXTS = ("content", "reasoning_content", "reasoning")
"""Fields of a delta with text; servers name thinking in two ways."""


class OpenAIEndpoint:
    """Sends chat completions, each over a connection of its own."""

    def __init__(self, url: str, wishes: Wishes) -> None:
        """Ask which models there are.

        Raises:
            KimiVLError: no server answers there, or it has no such model.
        """
        parts = urlsplit(url)
        self._kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._host, self._port = str(parts.hostname), parts.port or self._kind.default_port
        self._base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._url, self._wishes = url, wishes
        self._model = self._find_model()

    @property
    def description(self) -> dict[str, str]:
        """Name the address, its dialect, the model, and what its tokens are timed by."""
        return {
            "url": self._url,
            "dialect": "openai",
            "model": self._model,
            "tokens_by": "pieces",
        }

    def ask(self, question: Question, hear: Callable[[Heard], None]) -> Used:
        """Send one request and read its answer to the end.

        Raises:
            RequestFailedError: there is no whole answer.
        """
        timeout_s = self._wishes.timeout_s
        end = monotonic() + timeout_s
        try:
            used = self._ask(question, hear, timeout_s)
        except (*_BROKEN, *_MALFORMED, RequestFailedError) as error:
            raise self._failure(error, is_late=monotonic() >= end) from error
        if monotonic() >= end:
            raise self._failure(TimeoutError(), is_late=True)
        if used is None:
            raise RequestFailedError("cut", "the stream ended without its usage")
        return used

    def _ask(
        self, question: Question, hear: Callable[[Heard], None], timeout_s: float
    ) -> Used | None:
        used: Used | None = None
        with (
            self._connected(timeout_s) as connection,
            self._reply(connection, question) as reply,
        ):
            for event in _events(reply):
                if _has_text(event):
                    hear(Heard(num_tokens=1, has_text=True))
                used = _used(event) or used
        return used

    def _failure(self, error: Exception, *, is_late: bool) -> RequestFailedError:
        """Name what went wrong; whatever goes wrong behind the end is the end's doing."""
        if is_late or isinstance(error, TimeoutError):
            return RequestFailedError(
                "timeout", f"no whole answer within {self._wishes.timeout_s:g} s"
            )
        if isinstance(error, RequestFailedError):
            return error
        kind = "connection" if isinstance(error, _BROKEN) else "malformed"
        return RequestFailedError(kind, f"{type(error).__name__}: {error}")

    @contextmanager
    def _connected(self, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
        """Connect for so long at most, whatever comes and however slowly."""
        end = monotonic() + timeout_s
        with closing(self._kind(self._host, self._port, timeout=timeout_s)) as connection:
            connection.connect()
            timer = Timer(max(0.0, end - monotonic()), _shut_down, (connection.sock,))
            timer.daemon = True
            timer.start()
            try:
                yield connection
            finally:
                timer.cancel()

    def _headers(self) -> dict[str, str]:
        key = self._wishes.api_key
        return {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def _find_model(self) -> str:
        try:
            with self._connected(_CONNECT_S) as connection:
                connection.request("GET", f"{self._base}/models", headers=self._headers())
                with connection.getresponse() as answer:
                    content = answer.read(_MAX_BODY_BYTES)
            if answer.status != _OK:
                raise KimiVLError(f"{self._url}: {answer.status}: {_reason(content)}")
            models = [str(one["id"]) for one in json.loads(content)["data"]]
        except (*_BROKEN, *_MALFORMED) as error:
            raise KimiVLError(
                f"{self._url}: no endpoint of OpenAI's dialect answers ({error}); start one with "
                "`tool.py serve`"
            ) from error
        wanted = self._wishes.model or (models[0] if models else "")
        if wanted not in models:
            raise KimiVLError(f"{self._url}: no model {wanted!r}; it has {', '.join(models)}")
        return wanted

    def _reply(
        self, connection: http.client.HTTPConnection, question: Question
    ) -> http.client.HTTPResponse:
        body = {
            "model": self._model,
            "messages": question.messages,
            "max_tokens": self._wishes.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection.request(
            "POST", f"{self._base}/chat/completions", json.dumps(body), self._headers()
        )
        return connection.getresponse()


def _shut_down(connected: socket.socket) -> None:
    """End what waits for a connection in another thread."""
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream; comments and the last mark are none."""
    if reply.status != _OK:
        raise RequestFailedError(str(reply.status), _reason(reply.read(_MAX_BODY_BYTES)))
    while line := reply.readline(_MAX_LINE_BYTES):
        if len(line) == _MAX_LINE_BYTES:
            raise RequestFailedError("malformed", f"a line of {_MAX_LINE_BYTES} bytes or more")
        data = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        if error := event.get("error"):
            named = error if isinstance(error, dict) else {}
            kind = named.get("code") or named.get("type") or "error"
            raise RequestFailedError(str(kind)[:_SHOWN], _reason(data))
        yield event


def _has_text(event: dict[str, Any]) -> bool:
    deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
    return any(one.get(name) for one in deltas for name in _TEXTS)


def _used(event: dict[str, Any]) -> Used | None:
    usage = event.get("usage")
    if not usage:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Used(
        prompt_tokens=int(usage["prompt_tokens"]),
        cached_tokens=int(details.get("cached_tokens") or 0),
        new_tokens=int(usage["completion_tokens"]),
    )


def _reason(content: bytes) -> str:
    """Give the message of an error's body, or its beginning."""
    try:
        error = json.loads(content)["error"]
        return error if isinstance(error, str) else str(error["message"])
    except _MALFORMED:
        return content[:_SHOWN].decode(errors="replace")
