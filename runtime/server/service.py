"""What all requests of a server share: the session, its scheduler, the count of who is in.

Knows no sockets and no answers.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from time import monotonic

from ..errors import CapacityError
from ..scheduling.errors import ClosedError, QueueFullError
from ..scheduling.handle import Handle, Listener
from ..scheduling.options import Deadlines
from ..scheduling.scheduler import Scheduler
from ..session import Session
from .clock import Clock
from .options import ServerOptions
from .preparing import Preparation, Prepared, too_long
from .record import Record

_FAILURES_UNTIL_UNREADY = 3
_POLL_S = 0.02


class Service:
    """One served artifact."""

    def __init__(self, session: Session, scheduler: Scheduler, options: ServerOptions) -> None:
        """Get ready; the scheduler is the session's, and outlives the service."""
        self.session, self.options = session, options
        self.scheduler = scheduler
        self.preparation = Preparation(session, options)
        self._max_inside = session.engine.limits.max_slots + options.max_queued
        self._deadlines = Deadlines(
            queue_s=options.queue_timeout_s, total_s=options.request_timeout_s
        )
        self._preparing: set[Clock] = set()
        self.num_inside = 0
        """Requests from their first byte to the last one of their answer."""
        self.is_draining = False
        self.is_hurried = False
        """Whether draining is to end at once; may be set in a signal handler."""

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken, and the engine answers."""
        failures = self.scheduler.stats().failures_in_a_row
        return not self.is_draining and failures < _FAILURES_UNTIL_UNREADY

    @property
    def num_preparing(self) -> int:
        """Requests whose body is read, or made a prompt of."""
        return len(self._preparing)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request in, before its body is read.

        Raises:
            QueueFullError: as many as fit are inside.
            ClosedError: the server is shutting down.
        """
        if self.is_draining:
            raise ClosedError("no new requests are taken: the server is shutting down")
        if self.num_inside >= self._max_inside:
            retry_after_s = self.scheduler.retry_after_s
            raise QueueFullError(
                f"{self.num_inside} requests are running and waiting, which is the most; "
                f"try again in {math.ceil(retry_after_s)} s",
                retry_after_s=retry_after_s,
            )
        self.num_inside += 1
        try:
            yield
        finally:
            self.num_inside -= 1

    @contextlib.asynccontextmanager
    async def preparing(self, record: Record) -> AsyncIterator[Clock]:
        """Limit the time in which a request comes and is queued; all of it counts as the request's.

        Raises:
            KimiVLError: the time is over, or the clock was stopped; what ran in the block was
                cancelled.
        """
        clock = Clock(started=record.started, given_s=self.options.request_timeout_s)
        async with clock.running():
            self._preparing.add(clock)
            try:
                yield clock
            finally:
                self._preparing.discard(clock)

    async def prepare(self, body: bytes) -> Prepared:
        """Turn a body into a request.

        Raises:
            KimiVLError: it is not one that can be answered.
        """
        return await self.preparation.prepare(body)

    async def submit(self, prepared: Prepared, listener: Listener, *, arrived: float) -> Handle:
        """Queue a request that came at some time.

        Raises:
            KimiVLError: it does not fit, or too many are waiting.
        """
        try:
            return await self.preparation.with_texts(
                lambda: self.scheduler.submit(
                    prepared.request,
                    deadlines=self._deadlines,
                    listener=listener,
                    arrived=arrived,
                )
            )
        except CapacityError as error:
            raise too_long(str(error)) from error
        except asyncio.CancelledError:
            prepared.request.cancel()  # the thread may queue it all the same
            raise

    async def drain(self) -> None:
        """Take nothing new; return when all that is inside has ended, or its time is over."""
        self.is_draining = True
        end = monotonic() + self.options.drain_timeout_s
        while self.num_inside and monotonic() < end and not self.is_hurried:
            await asyncio.sleep(_POLL_S)

    def end_preparations(self) -> None:
        """End all requests that are not queued yet, in the event loop."""
        for clock in list(self._preparing):
            clock.stop(ClosedError("the server was shut down"))

    def close(self) -> None:
        """Let go of the threads, without waiting for what they do."""
        self.preparation.close()
