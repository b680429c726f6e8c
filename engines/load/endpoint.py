"""What a kind of endpoint implements, and which one an address means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from runtime.errors import InputError

from .asked import Question

DEFAULT_MODEL = "kimi_vl"
"""Of an address of Triton that names none."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What every request asks for."""

    max_new_tokens: int
    timeout_s: float
    """Until the last piece."""
    model: str | None = None
    """The first that the endpoint has, if left out."""
    api_key: str | None = None


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
        """Name the address, its dialect and the model."""

    def ask(self, question: Question, heard: Callable[[], None]) -> Used:
        """Send one request and read its answer to the end.

        Args:
            question: what is asked.
            heard: called at each piece that has text, thinking included.

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
        InputError: the address is of neither form.
        KimiVLError: no server answers there, or it has no such model.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error
    if parts.scheme in ("http", "https") and parts.hostname:
        from .openai_dialect import OpenAIEndpoint

        return OpenAIEndpoint(url, wishes)
    if parts.scheme == "grpc" and parts.hostname and port:
        from .triton_grpc import TritonEndpoint

        return TritonEndpoint(
            f"{parts.hostname}:{port}",
            wishes.model or parts.path.strip("/") or DEFAULT_MODEL,
            wishes,
        )
    raise InputError(
        f"{url}: expected http://HOST:PORT (OpenAI's dialect) or grpc://HOST:PORT/MODEL (Triton)"
    )
