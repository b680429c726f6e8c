"""The time of one request until it is queued."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic

from ..errors import KimiVLError
from ..scheduling.errors import DeadlineError


class Clock:
    """Cancels a block of code when its time is over, or when it is stopped with another reason."""

    def __init__(self, *, started: float, given_s: float | None) -> None:
        """Set the clock; it does not run yet.

        Args:
            started: when its time began, by `time.monotonic`.
            given_s: how much it has; None is without end.
        """
        self._started, self._given_s = started, given_s
        self._timeout: asyncio.Timeout | None = None
        self._reason: KimiVLError | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Cancel the block at its time.

        Raises:
            DeadlineError: the time is over.
            KimiVLError: what the clock was stopped with.
        """
        end: float | None = None
        if self._given_s is not None:
            self._reason = DeadlineError.unanswered(self._given_s)
            spent_s = monotonic() - self._started
            end = asyncio.get_running_loop().time() + self._given_s - spent_s
        timeout = self._timeout = asyncio.timeout_at(end)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if self._reason is None or not timeout.expired():
                raise
            raise self._reason from error
        finally:
            self._timeout = None

    def stop(self, reason: KimiVLError) -> None:
        """End the block with an error, in its event loop; does nothing if it is ending anyway."""
        if self._timeout is not None and not self._timeout.expired():
            self._reason = reason
            self._timeout.reschedule(0)
