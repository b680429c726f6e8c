"""What is configured of a server."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, describe_problems
from .flags import FLAGS

_MEGABYTE = 1 << 20


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
        problems = [
            f"{FLAGS[name].name}: expected at least {least}, found {value!r}"
            for name, value, least in (
                ("port", self.port, 0),
                ("max_body_bytes", self.max_body_bytes, 1),
                ("max_images", self.max_images, 0),
                ("max_new_tokens", self.max_new_tokens, 1),
                ("max_queued", self.max_queued, 0),
                ("chunk_beside_decoding", self.chunk_beside_decoding, 1),
                ("image_cache_bytes", self.image_cache_bytes, 0),
                ("drain_timeout_s", self.drain_timeout_s, 0),
            )
            if value is not None and not value >= least
        ]
        problems += [
            f"{FLAGS[name].name}: expected a positive number of seconds, found {value!r}"
            for name, value in (
                ("queue_timeout_s", self.queue_timeout_s),
                ("request_timeout_s", self.request_timeout_s),
            )
            if value is not None and not value > 0
        ]
        if self.port > 65535:
            problems.append(f"{FLAGS['port'].name}: expected at most 65535, found {self.port}")
        if not self.model_names or not all(self.model_names):
            name = FLAGS["model_names"].name
            problems.append(f"{name}: expected at least one name, none empty")
        if not (self.is_loopback or self.api_keys or self.allow_anyone):
            problems.append(
                f"host {self.host} can be reached from other machines; give --api-keys FILE, or "
                "--allow-anyone where everybody on that network may use the model"
            )
        if problems:
            raise InputError(describe_problems("server", problems))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
