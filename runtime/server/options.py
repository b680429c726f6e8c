"""What is configured of a server."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, describe_problems
from .flags import FLAGS

_MEGABYTE = 1 << 20
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]]+)(:\d{1,5})?")
_ORIGIN = re.compile(rf"\*|https?://{_HOST.pattern}")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, who may use it, and the most that a request may ask for.

    Raises:
        InputError: a value is outside its range, or the address is open to others and the server
            to everybody; all of it is named at once.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free one."""
    model_names: tuple[str, ...]
    """What clients may call the model; answers carry the first."""
    api_keys: Path | None = None
    """A file with one key a line; without one everybody may ask."""
    allow_anyone: bool = False
    """Whether an address that others can reach may do without keys."""
    max_body_bytes: int = 32 * _MEGABYTE
    max_images: int = 32
    """Of one request, frames of videos included."""
    max_new_tokens: int | None = None
    """Most tokens of one answer, thinking included; None is all that fits a slot."""
    max_queued: int = 64
    """Requests that wait for a slot."""
    queue_timeout_s: float | None = None
    """How long they may; None is as long as the next."""
    chunk_beside_decoding: int | None = None
    """Most tokens of a prompt that running answers wait for between two tokens; None is the
    engine's own chunk."""
    request_timeout_s: float | None = 600.0
    """From its first byte to the last token of its answer."""
    drain_timeout_s: float = 30.0
    """What running requests get after SIGTERM."""
    image_cache_bytes: int = 256 * _MEGABYTE
    image_hosts: tuple[str, ...] = ()
    """Hosts, or host:port, whose images are fetched."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may read answers."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        problems = [*self._numbers(), *self._forms()]
        if not (self.is_loopback or self.api_keys or self.allow_anyone):
            problems.append(
                f"host {self.host} can be reached from other machines; give --api-keys FILE, or "
                "--allow-anyone where everybody on that network may use the model"
            )
        if problems:
            raise InputError(describe_problems("server", problems))

    def _numbers(self) -> Iterator[str]:
        """Yield what is wrong with numbers."""
        for name, value, least in (
            ("port", self.port, 0),
            ("max_body_bytes", self.max_body_bytes, 1),
            ("max_images", self.max_images, 0),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("max_queued", self.max_queued, 0),
            ("chunk_beside_decoding", self.chunk_beside_decoding, 1),
            ("image_cache_bytes", self.image_cache_bytes, 0),
            ("drain_timeout_s", self.drain_timeout_s, 0),
        ):
            if value is not None and not value >= least:
                yield f"{FLAGS[name].name}: expected at least {least}, found {value!r}"
        for name, seconds in (
            ("queue_timeout_s", self.queue_timeout_s),
            ("request_timeout_s", self.request_timeout_s),
        ):
            if seconds is not None and not seconds > 0:
                flag = FLAGS[name].name
                yield f"{flag}: expected a positive number of seconds, found {seconds!r}"
        if self.port > 65535:
            yield f"{FLAGS['port'].name}: expected at most 65535, found {self.port}"

    def _forms(self) -> Iterator[str]:
        """Yield what is wrong with names."""
        if not self.model_names or not all(self.model_names):
            yield f"{FLAGS['model_names'].name}: expected at least one name, none empty"
        for name, values, form, expected in (
            ("image_hosts", self.image_hosts, _HOST, "HOST or HOST:PORT"),
            ("cors_origins", self.cors_origins, _ORIGIN, "https://HOST or http://HOST:PORT"),
        ):
            for value in values:
                if not form.fullmatch(value):
                    yield f"{FLAGS[name].name}: expected {expected}, found {value!r}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
