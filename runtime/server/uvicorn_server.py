"""Runs the application on uvicorn, with an end that loses nothing.

At the first signal the server goes on listening: load balancers see that it is not ready, new
requests are told 503, and running ones get their time. uvicorn alone would close the door first.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from ..scheduling.options import SchedulerOptions
from ..session import Session
from .app import make_app
from .keys import ApiKeys
from .metrics import Metrics
from .options import ServerOptions
from .service import Service

_LOGGER = logging.getLogger("kimivl.server")
_KEEP_ALIVE_S = 65
"""Longer than proxies keep idle connections by default, so that they end them, not we."""
_LAST_WORDS_S = 3
"""For what is still being sent when the engine has stopped."""


class DrainingServer(uvicorn.Server):
    """A server that is told its service, to drain it."""

    def __init__(
        self, config: uvicorn.Config, service: Service, announce: Callable[[], object]
    ) -> None:
        """Prepare to serve; `announce` is called when connections are taken."""
        super().__init__(config)
        self.service, self._announce = service, announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self.ended_by: signal.Signals | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, hurry at the second, wait for nobody at further ones.

        uvicorn's own would raise the signals again at its end, and change the exit status.
        """
        if self.ended_by is None:
            self.ended_by = signal.Signals(sig)
            if self._loop is None:
                self.should_exit = True
            else:
                self._loop.call_soon_threadsafe(self._begin_to_drain)
        elif not self.service.is_hurried:
            self.service.is_hurried = True
        else:
            self.should_exit = self.force_exit = True

    def _begin_to_drain(self) -> None:
        _LOGGER.info(
            "finishing %d requests, for at most %g s; another signal ends them",
            self.service.num_inside,
            self.service.options.drain_timeout_s,
        )
        self._drain = asyncio.create_task(self._end_gently())

    async def _end_gently(self) -> None:
        await self.service.drain()
        self.service.end_preparations()
        await asyncio.to_thread(self.service.scheduler.close)
        self.should_exit = True


def run(
    session: Session,
    options: ServerOptions,
    keys: ApiKeys | None,
    listener: socket.socket,
    announce: Callable[[str], object],
) -> signal.Signals | None:
    """Serve a session on a bound socket until a signal, and return that.

    Called in the main thread, it leaves signals to the server for good, so that one which comes
    when the process is ending anyway does not change its exit status.
    """
    with scheduled_server(session, options, keys, lambda: announce(url_of(listener))) as server:
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGTERM, signal.SIGINT):
                signal.signal(one, server.handle_exit)
        server.run(sockets=[listener])
    return server.ended_by


@contextlib.contextmanager
def scheduled_server(
    session: Session, options: ServerOptions, keys: ApiKeys | None, announce: Callable[[], object]
) -> Iterator[DrainingServer]:
    """Join session, scheduler, application and server; the end of the block ends the scheduler."""
    metrics = Metrics()
    # The service counts who is inside. The scheduler's bound is never reached: it would also count
    # those that arrive together while slots are free.
    scheduling = SchedulerOptions(
        max_queued=options.max_queued + session.engine.limits.max_slots,
        chunk_beside_decoding=options.chunk_beside_decoding,
        image_cache_bytes=options.image_cache_bytes,
    )
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(session.scheduling(scheduling, observe=metrics.observe))
        metrics.watch(scheduler.stats)
        service = stack.enter_context(contextlib.closing(Service(session, scheduler, options)))
        metrics.watch_preparing(lambda: service.num_preparing)
        config = uvicorn.Config(
            make_app(service, metrics, keys),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
            lifespan="off",
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
        yield DrainingServer(config, service, announce)


def url_of(listener: socket.socket) -> str:
    """Write where a bound socket is."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
