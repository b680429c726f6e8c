"""Hands events of a request from the scheduler's thread to one coroutine, with a bound.

The scheduler never waits for a reader. A reader that falls too far behind loses its request.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from ..scheduling.handle import End, Event


class EventBuffer:
    """The events of one request that its reader has not taken yet."""

    def __init__(self, *, max_pieces: int | None) -> None:
        """Start empty, in the event loop of the reader.

        Args:
            max_pieces: with so many waiting, the request is cancelled at the next; None is
                without end, for a reader that waits for nothing.
        """
        self._loop = asyncio.get_running_loop()
        self.max_pieces = max_pieces
        self._events: deque[Event] = deque()
        self._is_there = asyncio.Event()
        self.on_overrun: Callable[[], None] = lambda: None
        """Called once, in the event loop."""
        self.is_overrun = False

    def listen(self, event: Event) -> None:
        """Take an event, in any thread."""
        self._loop.call_soon_threadsafe(self._put, event)

    async def next(self, timeout_s: float) -> Event | None:
        """Give the next event, or None if there is none for so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_there.wait()
        except TimeoutError:
            return None
        event = self._events.popleft()
        if not self._events:
            self._is_there.clear()
        return event

    def _put(self, event: Event) -> None:
        is_full = self.max_pieces is not None and len(self._events) >= self.max_pieces
        if not isinstance(event, End):
            if self.is_overrun:
                return
            if is_full:
                self.is_overrun = True
                self.on_overrun()
                return
        self._events.append(event)
        self._is_there.set()
