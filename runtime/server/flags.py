"""The fields of `ServerOptions` as flags, for every command line that serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One field on a command line."""

    name: str
    help: str
    type: Any = str
    metavar: str = "N"

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.type is bool

    @property
    def is_repeated(self) -> bool:
        """Whether it may be given again."""
        return self.type is tuple


FLAGS: Mapping[str, Flag] = {
    "host": Flag(name="--host", metavar="ADDRESS", help="Where to listen."),
    "port": Flag(name="--port", type=int, help="The port; 0 takes any free one."),
    "model_names": Flag(
        name="--served-model-name",
        type=tuple,
        metavar="NAME",
        help="What clients may call the model; may be given again; by default the folder's name.",
    ),
    "api_keys": Flag(
        name="--api-keys",
        type=Path,
        metavar="FILE",
        help="A file with one key a line; who has none of them is refused.",
    ),
    "allow_anyone": Flag(
        name="--allow-anyone",
        type=bool,
        help="Do without keys on an address that other machines reach.",
    ),
    "max_body_bytes": Flag(
        name="--max-body-bytes", type=int, help="The largest request, its images included."
    ),
    "max_images": Flag(name="--max-images", type=int, help="Most images of one request."),
    "max_new_tokens": Flag(
        name="--max-new-tokens", type=int, help="Most tokens of an answer, thinking included."
    ),
    "max_queued": Flag(
        name="--max-queued", type=int, help="Requests that may wait for a slot; more get 429."
    ),
    "chunk_beside_decoding": Flag(
        name="--chunk-beside-decoding",
        type=int,
        help="Most tokens of a prompt that running answers wait for between two tokens.",
    ),
    "queue_timeout_s": Flag(
        name="--queue-timeout",
        type=float,
        metavar="S",
        help="Seconds that a request may wait for a slot.",
    ),
    "request_timeout_s": Flag(
        name="--request-timeout", type=float, metavar="S", help="Seconds until the last token."
    ),
    "drain_timeout_s": Flag(
        name="--drain-timeout",
        type=float,
        metavar="S",
        help="Seconds that running requests get after SIGTERM or Ctrl-C.",
    ),
    "image_cache_bytes": Flag(
        name="--image-cache-bytes", type=int, help="Memory for what was made of images."
    ),
    "image_hosts": Flag(
        name="--image-host",
        type=tuple,
        metavar="HOST",
        help="Fetch images from this host, or HOST:PORT; may be given again. Others are refused.",
    ),
    "cors_origins": Flag(
        name="--cors-origin",
        type=tuple,
        metavar="ORIGIN",
        help="Let web pages of this origin read answers; may be given again.",
    ),
}
