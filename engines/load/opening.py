"""Which kind of endpoint an address means."""

import ipaddress
from urllib.parse import SplitResult, urlsplit

from runtime.errors import InputError

from .endpoint import Endpoint, Wishes
from .openai_dialect import OpenAIEndpoint
from .triton_grpc import TritonEndpoint

DEFAULT_MODEL = "kimi_vl"
"""Of an address of Triton that names none."""


def connect(url: str, wishes: Wishes) -> Endpoint:
    """Choose the dialect by the address, and ask the server what it has.

    Args:
        url: `http://host:port` or `https://` with any path before `/v1` for OpenAI's dialect;
            `grpc://host:port/model` for a Triton server.
        wishes: what every request asks for.

    Raises:
        InputError: the address is of neither form, or has a password or a key that is not sent.
        KimiVLError: no server answers there, or it has no such model.
    """
    parts, port = _split(url)
    if parts.scheme in ("http", "https") and parts.hostname:
        return OpenAIEndpoint(url, wishes)
    if parts.scheme == "grpc" and parts.hostname and port:
        if wishes.api_key is not None:
            raise InputError(f"{url}: a Triton server takes no API key; leave the key out")
        return TritonEndpoint(
            f"{_bracketed(parts.hostname)}:{port}",
            wishes.model or parts.path.strip("/") or DEFAULT_MODEL,
            wishes,
        )
    raise InputError(
        f"{url}: expected http://HOST:PORT (OpenAI's dialect) or grpc://HOST:PORT/MODEL (Triton)"
    )


def _split(url: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url.rpartition('@')[2]}: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise InputError(
            f"{parts.scheme}://...@{parts.hostname}: names and passwords are not sent; leave them "
            "out, and give a key by --api-key-file"
        )
    return parts, port


def _bracketed(host: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        return host
