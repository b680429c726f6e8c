"""What every request passes: notes for the log and the counts outside, the doorkeeper inside.

Logged is one line of JSON for each request, without anything that a request or an answer says.
"""

import asyncio
import ipaddress
import json
import logging
import time
import traceback
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError
from .body import LingeringResponse
from .keys import ApiKeys
from .metrics import Metrics
from .models import MODELS_PREFIX
from .record import Record, begin_record, record_of

ACCESS_LOG = "kimivl.access"
MISTAKES_LOG = "kimivl.mistakes"
_GONE = 499
"""nginx's status for a client that went away before it was answered; only in the log."""
_SHOWN = 500


class Noting:
    """Gives each request an id, and logs and counts its answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str]) -> None:
        """Wrap an application; other paths than these are counted as one."""
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
        self._logger = logging.getLogger(ACCESS_LOG)
        self._mistakes = logging.getLogger(MISTAKES_LOG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin_record(scope)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                own = [
                    (b"x-request-id", record.request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except asyncio.CancelledError:  # of uvicorn, when the last words take too long
            record.status, record.error = record.status or 503, "shutting_down"
        except Exception as error:  # noqa: BLE001  it was answered; whoever is above would log it
            self._log_mistake(record, error)
        finally:
            self._note(scope, record)

    def _log_mistake(self, record: Record, error: Exception) -> None:
        """Log where a mistake of ours happened, without its text, which may repeat a request."""
        places = "".join(traceback.format_tb(error.__traceback__))
        self._mistakes.error("%s in %s\n%s", type(error).__name__, record.request_id, places)

    def _note(self, scope: Scope, record: Record) -> None:
        status = record.status or (_GONE if record.is_gone else 500)
        path = self._name(scope["path"])
        self._metrics.count_answer(path, status, record.error)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": record.request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(time.monotonic() - record.started, 4),
        }
        if record.usage is not None:
            line |= {
                "prompt_tokens": record.usage.prompt_tokens,
                "reused_tokens": record.usage.reused_tokens,
                "new_tokens": record.usage.new_tokens,
            }
        if record.reason is not None:
            line["reason"] = record.reason
        if record.error is not None:
            line["error"] = record.error
        if record.cause is not None:
            line["cause"] = record.cause[:_SHOWN]
        self._logger.info(json.dumps(line))

    def _name(self, path: str) -> str:
        """Name a path by its route, so that there are few names."""
        if path.startswith(MODELS_PREFIX):
            return f"{MODELS_PREFIX}{{model}}"
        return path if path in self._paths else "other"


class Doorkeeper:
    """Lets in who has a key, or, on a server for this machine alone, who calls it by its name.

    A page of another origin can make a browser call an address of this machine under a name that
    leads there (DNS rebinding); the name in the Host header gives it away.
    """

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeys | None, is_loopback: bool, open_paths: Collection[str]
    ) -> None:
        """Wrap an application; `open_paths` need no key."""
        self._app, self._keys, self._is_loopback = app, keys, is_loopback
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            refusal = self._refuse(Headers(scope=scope), scope["path"])
            if refusal is not None:
                await error_response(scope, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse(self, headers: Headers, path: str) -> ApiError | None:
        if self._keys is None:
            name = headers.get("host", "").lower()
            if self._is_loopback and not _is_local(_without_port(name)):
                return ApiError(
                    421,
                    f"without API keys this server answers to localhost only, not to {name[:60]!r}",
                    code="wrong_host",
                )
            return None
        if path in self._open or self._keys.allow(headers.get("authorization", "")):
            return None
        return ApiError(
            401,
            "an API key is needed: Authorization: Bearer KEY",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def error_response(scope: Scope, error: ApiError) -> Response:
    """Answer with an error, and note it."""
    record = record_of(scope)
    record.error, record.cause = error.code, error.cause
    kind = LingeringResponse if "Connection" in error.headers else Response
    return kind(
        json.dumps(error.body),  # in ASCII, whatever a message repeats
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


def _is_local(host: str) -> bool:
    """Tell whether a host is this machine by any of its own names, none of which DNS gives."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    if host.count(":") > 1:  # an address of version 6 as it is
        return host
    return host.partition(":")[0]
