"""What a kind of endpoint implements, and which one an address means."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from runtime.errors import InputError

from .asked import Question

DEFAULT_MODEL = "kimi_vl"
"""Of an address of Triton that names none."""
MIN_TIMEOUT_S = 0.001
MAX_TIMEOUT_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What every request asks for.

    Raises:
        InputError: the timeout is out of its range.
    """

    max_new_tokens: int
    timeout_s: float
    """Until the last piece."""
    model: str | None = None
    """The first that the endpoint has, if left out."""
    api_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be waited for."""
        if not MIN_TIMEOUT_S <= self.timeout_s <= MAX_TIMEOUT_S:
            raise InputError(
                f"timeout: expected {MIN_TIMEOUT_S:g} to {MAX_TIMEOUT_S:g} seconds, "
                f"found {self.timeout_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A part of an answer, as it came."""

    num_tokens: int
    """As far as the endpoint tells; in OpenAI's dialect 1 for each part with text."""
    has_text: bool
    """Thinking included."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """Token counts of an answered request, as the endpoint says."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed again."""
    new_tokens: int


class RequestFailedError(Exception):
    """A request got no answer, or not all of it."""

    def __init__(self, kind: str, message: str) -> None:
        """Say why in one word, by which failures are counted, and in full."""
        super().__init__(message)
        self.kind = kind


class Endpoint(Protocol):
    """One server and model; `ask` may be called by many threads at once."""

    @property
    def description(self) -> dict[str, str]:
        """Name the address, its dialect, the model, and what its tokens are timed by."""

    def ask(self, question: Question, hear: Callable[[Heard], None]) -> Used:
        """Send one request and read its answer to the end.

        Args:
            question: what is asked.
            hear: called at each part that has text or tokens.

        Raises:
            RequestFailedError: there is no whole answer.
        """


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
        from .openai_dialect import OpenAIEndpoint

        return OpenAIEndpoint(url, wishes)
    if parts.scheme == "grpc" and parts.hostname and port:
        from .triton_grpc import TritonEndpoint

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
