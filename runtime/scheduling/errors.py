"""How a scheduled request ends that does not get its answer.

KimiVLError
├── QueueFullError      too many are waiting; says when to come again
├── ClosedError         the scheduler takes no more requests, or was closed
├── DeadlineError       it waited or took longer than it was given
├── EngineFailedError   a step of the engine raised
├── HandlingError       choosing its tokens or handing them over raised
└── SchedulerError      a mistake of the scheduler itself
"""

from ..errors import KimiVLError


class QueueFullError(KimiVLError):
    """As many requests are waiting as may wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Say when a place should be free again, by how long requests took lately."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClosedError(KimiVLError):
    """The scheduler takes no new requests, or was closed while this one ran."""


class DeadlineError(KimiVLError):
    """The request waited longer, or took longer, than it was given."""

    @classmethod
    def unanswered(cls, given_s: float) -> "DeadlineError":
        """Tell that all the time that a request was given is over."""
        return cls(
            f"the request was not answered within {given_s:g} s; ask for fewer tokens or "
            "give it longer"
        )


class EngineFailedError(KimiVLError):
    """The engine raised something in a step that this request was part of."""


class HandlingError(KimiVLError):
    """The request's own sampling, constraint or listener raised something."""


class SchedulerError(KimiVLError):
    """The scheduler made a mistake; what was running was ended."""
