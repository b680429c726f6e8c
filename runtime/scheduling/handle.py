"""What the sender of a request holds: its events as they come, its end, and a way to cancel it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from ..errors import KimiVLError
from ..generation.channels import Piece
from ..generation.request import Request, Result
from ..generation.stopping import FinishReason


@dataclass(frozen=True, kw_only=True)
class End:
    """The last event of a request; each has exactly one."""

    reason: FinishReason | Literal["error"]
    result: Result | None
    """Counts and timings of what was done; None if the request never had a slot."""
    error: KimiVLError | None
    """None unless the reason is `error`."""


Event = Piece | End
Listener = Callable[[Event], object]
"""Called in the scheduler's thread, between two steps that all requests wait for: it should hand
the event on and return. In asyncio: `lambda event: loop.call_soon_threadsafe(queue.put_nowait,
event)`. What it returns is ignored; what it raises ends its request."""


class Handle:
    """One submitted request. All methods may be called from any thread."""

    def __init__(
        self, request: Request, *, listener: Listener | None, wake: Callable[[], None]
    ) -> None:
        """Join a request and who is told its events; `Scheduler.submit` does it."""
        self.request = request
        self._wake = wake
        self._kept: SimpleQueue[Event] = SimpleQueue()
        self._listener = listener
        self._is_read = listener is not None
        self._end: End | None = None
        self._ended = threading.Event()

    @property
    def end(self) -> End | None:
        """The last event, when it has come."""
        return self._end

    def cancel(self) -> None:
        """End the request at the next token border; does nothing to an ended one."""
        self.request.cancel()
        self._wake()

    def wait(self, timeout_s: float | None = None) -> End:
        """Wait for the end.

        Raises:
            TimeoutError: it did not come in time; the request goes on.
        """
        self._ended.wait(timeout_s)
        if self._end is None:
            raise TimeoutError(f"no end within {timeout_s} s")
        return self._end

    def events(self) -> Iterator[Event]:
        """Give pieces as they come, then the end; once, to one reader, if there is no listener."""
        while not self._is_read:
            event = self._kept.get()
            self._is_read = isinstance(event, End)
            yield event

    def pieces(self) -> Iterator[Piece]:
        """Give pieces as they come.

        Raises:
            KimiVLError: the request ended with this error.
        """
        for event in self.events():
            if isinstance(event, Piece):
                yield event
            elif event.error is not None:
                raise event.error

    def deliver(self, event: Event) -> None:
        """Tell the reader or the listener; called by the scheduler's thread alone.

        Raises:
            Exception: from the listener.
        """
        if isinstance(event, End):
            self._end = event
            self._ended.set()
        if self._listener is None:
            self._kept.put(event)
        else:
            self._listener(event)
