"""How the end of a request is told."""

from ..errors import KimiVLError
from ..generation.channels import Piece
from ..generation.request import Result
from .handle import End, Event, Handle
from .job import Job
from .statistics import Counters


def finish(job: Job, error: KimiVLError | None, counters: Counters) -> None:
    """Tell a request what is left of its text, then its end.

    Without an error it ended as its run says; a run that does not say, and a request that never
    had one, were cancelled.
    """
    result: Result | None = None
    pieces: list[Piece] = []
    if job.has_run:
        pieces = job.run.decoding.cancel()
        result = job.run.result(job.queued_s)
    if error is None:
        job.request.result = result
        end = End(reason=result.finish_reason if result else "cancelled", result=result, error=None)
    else:
        end = End(reason="error", result=result, error=error)
        counters.errors[type(error).__name__] += 1
    counters.ended[end.reason] += 1
    events: list[Event] = [*pieces, end]
    for event in events:
        _deliver_last(job.handle, event, counters)


def named(error: Exception, kind: type[KimiVLError], what: str) -> KimiVLError:
    """Give an error a message for users and a class; one that has both stays as it is."""
    if isinstance(error, KimiVLError):
        return error
    wrapped = kind(f"{what}: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _deliver_last(handle: Handle, event: Event, counters: Counters) -> None:
    try:
        handle.deliver(event)
    except Exception:  # noqa: BLE001  the listener's; its request has ended, so it is only counted
        counters.errors["ListenerRaised"] += 1
