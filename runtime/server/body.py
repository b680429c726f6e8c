"""Reads the body of a request within bounds of size and time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from .api_errors import ApiError

_TIMEOUT_S = 60.0


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
        raise ApiError(400, "the client went away", code="disconnected") from error
    return bytes(data)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body is over the limit of {max_bytes:,} bytes; send smaller or fewer images",
        code="body_too_large",
        headers={"Connection": "close"},  # the rest of the body is not read
    )
