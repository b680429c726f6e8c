"""Serves an artifact until it is told to stop; the one way in."""

import errno
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UnsupportedError
from ..extras import install_advice
from .options import ServerOptions

if TYPE_CHECKING:
    from ..session import Session

_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_BACKLOG = 2048
_UNREAD_MS = 60_000
"""A connection whose peer takes nothing for so long is dropped."""


def check_installed(names: Sequence[str] = _NEEDED) -> None:
    """Refuse to go on without what the extra brings.

    Raises:
        UnsupportedError: something is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"the server needs {', '.join(missing)}, of the extra `serve`: "
            + install_advice("serve")
        )


def serve(
    open_session: Callable[[], "Session"],
    options: ServerOptions,
    *,
    announce: Callable[[str], object],
) -> signal.Signals | None:
    """Serve until SIGTERM or SIGINT: what runs is finished, a second signal ends it at once.

    Args:
        open_session: opens the artifact, once the address is known to be free.
        options: of the server.
        announce: told where the server is, when it answers.

    Returns:
        The signal that ended it.

    Raises:
        KimiVLError: the extra is missing, the address is taken, or a file cannot be used.
    """
    check_installed()
    from .keys import ApiKeys
    from .uvicorn_server import run

    keys = ApiKeys.load(options.api_keys) if options.api_keys else None
    listener = bind(options.host, options.port)
    try:
        return run(open_session(), options, keys, listener, announce)
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Take an address, and listen: of two servers on one port the second is told at once.

    Connections wait in the system until the artifact is open.

    Raises:
        InputError: it is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets that say TCP; else answers wait for the peer's
    # delayed acknowledgement, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # inherited by every connection
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter for names that no host can have
        listener.close()
        is_host = isinstance(error, (socket.gaierror, UnicodeError))
        is_host |= getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        raise InputError(
            f"{host}:{port}: cannot be served at: {getattr(error, 'strerror', None) or error}; "
            f"choose another {'--host' if is_host else '--port'}"
        ) from error
    return listener


def log_to_stderr() -> None:
    """Let the access log and the server's own warnings appear on stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("kimivl", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
    # It warns of writes to connections that clients have broken, once for each.
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def name_of(artifact: Path) -> str:
    """Name the model of an artifact folder, if nobody else does."""
    return artifact.resolve().name or "kimivl"
