"""An endpoint in the dialect of OpenAI's chat API, read as it streams.

Source: https://platform.openai.com/docs/api-reference/chat (server-sent events).
"""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import KimiVLError

from .asked import Question
from .endpoint import RequestFailedError, Used, Wishes

_SHOWN = 200
_OK = 200
_CONNECT_S = 10.0
_BROKEN = (OSError, http.client.HTTPException)


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
        self._host, self._port = str(parts.hostname), parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._url, self._wishes = url, wishes
        self._model = self._find_model()

    @property
    def description(self) -> dict[str, str]:
        """Name the address, its dialect and the model."""
        return {"url": self._url, "dialect": "openai", "model": self._model}

    def ask(self, question: Question, heard: Callable[[], None]) -> Used:
        """Send one request and read its answer to the end.

        Raises:
            RequestFailedError: there is no whole answer.
        """
        end = monotonic() + self._wishes.timeout_s
        used: Used | None = None
        try:
            with (
                closing(self._connect(self._wishes.timeout_s)) as connection,
                self._reply(connection, question) as reply,
            ):
                for event in _events(reply):
                    if monotonic() > end:
                        raise TimeoutError
                    if _has_text(event):
                        heard()
                    used = _used(event) or used
        except TimeoutError as error:
            raise RequestFailedError(
                "timeout", f"no whole answer within {self._wishes.timeout_s:g} s"
            ) from error
        except _BROKEN as error:
            raise RequestFailedError("connection", f"{type(error).__name__}: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestFailedError("malformed", f"{type(error).__name__}: {error}") from error
        if used is None:
            raise RequestFailedError("cut", "the stream ended without its usage")
        return used

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        return self._kind(self._host, self._port, timeout=timeout_s)

    def _headers(self) -> dict[str, str]:
        key = self._wishes.api_key
        return {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def _find_model(self) -> str:
        try:
            with closing(self._connect(_CONNECT_S)) as connection:
                connection.request("GET", f"{self._base}/models", headers=self._headers())
                with connection.getresponse() as answer:
                    content = answer.read()
            if answer.status != _OK:
                raise KimiVLError(f"{self._url}: {answer.status}: {_reason(content)}")
            models = [str(one["id"]) for one in json.loads(content)["data"]]
        except (*_BROKEN, ValueError, KeyError, TypeError) as error:
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


def _events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream; comments and the last mark are none."""
    if reply.status != _OK:
        raise RequestFailedError(str(reply.status), _reason(reply.read()))
    while line := reply.readline():
        data = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            kind = event["error"].get("code") or event["error"].get("type") or "error"
            raise RequestFailedError(str(kind), _reason(data))
        yield event


def _has_text(event: dict[str, Any]) -> bool:
    deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
    return any(one.get("content") or one.get("reasoning_content") for one in deltas)


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
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content[:_SHOWN].decode(errors="replace")
