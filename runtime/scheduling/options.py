"""What is configured of a scheduler, and of how long a request may take."""

from dataclasses import dataclass

from ..errors import InputError, describe_problems

_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """Bounds of a scheduler.

    Raises:
        InputError: a value is outside its range; all of them are named at once.
    """

    max_queued: int = 64
    """Requests that may wait for a slot; one more is refused."""
    chunk_beside_decoding: int | None = None
    """Most tokens of a prompt in one step while others are being answered: what these wait between
    two tokens. None is the engine's own chunk."""
    image_cache_bytes: int = 256 * _MEGABYTE
    """What the encoder made of images and may be kept; 0 keeps nothing."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        problems = [
            f"{name}: expected an integer of at least {least}, found {value!r}"
            for name, value, least in (
                ("max_queued", self.max_queued, 1),
                ("chunk_beside_decoding", self.chunk_beside_decoding, 1),
                ("image_cache_bytes", self.image_cache_bytes, 0),
            )
            if value is not None and (isinstance(value, bool) or value < least)
        ]
        if problems:
            raise InputError(describe_problems("scheduler", problems))


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long a request may take; None is without end.

    Raises:
        InputError: a value is not positive.
    """

    queue_s: float | None = None
    """From its submission until it has a slot."""
    total_s: float | None = None
    """From its arrival until its last token."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        problems = [
            f"{name}: expected a positive number of seconds, found {value!r}"
            for name, value in (("queue_s", self.queue_s), ("total_s", self.total_s))
            if value is not None and not value > 0
        ]
        if problems:
            raise InputError(describe_problems("deadlines", problems))
