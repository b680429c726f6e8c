"""Whether the client of a request is still there."""

import asyncio
from collections.abc import Callable

from starlette.types import Receive

from .api_errors import ApiError
from .record import Record


class Client:
    """Watches for the end of a connection, from the end of the body on."""

    def __init__(self, receive: Receive, record: Record) -> None:
        """Know where a client would be heard of; `record` is told when it goes away."""
        self.record = record
        self._receive = receive
        self._on_leaving: Callable[[], object] = lambda: None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it went away."""
        return self.record.is_gone

    def on_leaving(self, call: Callable[[], object]) -> None:
        """Have something called when it goes away, and nothing else; at once if it has."""
        self._on_leaving = call
        if self.is_gone:
            call()

    def watch(self) -> None:
        """Begin to watch; nobody else may read from the connection any more."""
        self._task = asyncio.create_task(self._wait())

    def let_go(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.record.is_gone = True
        self._on_leaving()


def client_left() -> ApiError:
    """Say to nobody, but in the log, that the client went away."""
    return ApiError(499, "the client went away", code="disconnected")
