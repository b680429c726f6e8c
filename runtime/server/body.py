"""Reads the body of a request within bounds of size and time."""

import asyncio
import contextlib

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .api_errors import ApiError
from .client import client_left
from .record import record_of

_TIMEOUT_S = 60.0
_LINGER_S, _LINGER_BYTES = 5.0, 256 << 20
"""What is still taken, and dropped, of a body that was refused."""


async def read_json_body(request: Request, *, max_bytes: int) -> bytes:
    """Read a body that says of itself that it is JSON.

    Demanding that word keeps pages of other origins from sending requests unasked: a browser asks
    first before it sends it.

    Raises:
        ApiError: it says something else, is too large, or does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"content-type: expected application/json, found {kind[:60] or 'none'}",
            code="unsupported_media_type",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    data = bytearray()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async for block in request.stream():
                data += block
                if len(data) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError as error:
        raise ApiError(
            408, f"the body did not come within {_TIMEOUT_S:g} s", code="body_timeout"
        ) from error
    except ClientDisconnect as error:
        record_of(request.scope).is_gone = True
        raise client_left() from error
    return bytes(data)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body is over the limit of {max_bytes:,} bytes; send smaller or fewer images",
        code="body_too_large",
        headers={"Connection": "close"},  # the rest of the body is not read
    )


class LingeringResponse(Response):
    """An answer to a request whose body is not read: sent, then the body is dropped for a while.

    A connection that is closed with unread data is reset, and its client, which is still sending,
    may never see the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _drop_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_body(receive: Receive) -> None:
    num_dropped = 0
    while num_dropped < _LINGER_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        num_dropped += len(message.get("body", b""))
