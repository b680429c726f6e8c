"""One download under bounds: of one file, of all files of its request, and of time.

A timeout of a socket begins anew with every byte that comes. Here the socket is shut when the time
is over, whatever is waited for: a handshake, a header, the length of a chunk.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from time import monotonic
from typing import NamedTuple
from urllib.parse import SplitResult

from ..errors import CapacityError, InputError

_BLOCK_BYTES = 1 << 16


class Budget:
    """The bytes that all images of one request may have together."""

    def __init__(self, max_bytes: int) -> None:
        """Start with all of them left."""
        self._max_bytes = self._left = max_bytes
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Take some, in any thread.

        Raises:
            CapacityError: fewer are left.
        """
        with self._lock:
            self._left -= size
            if self._left < 0:
                raise CapacityError(
                    f"the images of the request are over {self._max_bytes:,} bytes together"
                )


class Fetch:
    """One download under way: what it may still take of its request's bytes, and of its time."""

    def __init__(self, name: str, *, max_bytes: int, budget: Budget, timeout_s: float) -> None:
        """Start the time.

        Args:
            name: of the file, for errors.
            max_bytes: of the file.
            budget: of its request.
            timeout_s: until it is here.
        """
        self.name = name
        self._max_bytes, self._budget, self._timeout_s = max_bytes, budget, timeout_s
        self._end = monotonic() + timeout_s
        self._socket: socket.socket | None = None
        self._watchdog = threading.Timer(timeout_s, self._cut)
        self._watchdog.daemon = True
        self._watchdog.start()

    def use(self, connection: socket.socket) -> None:
        """Have a socket shut at the end of the time, whatever it is waiting for then."""
        self._socket = connection
        self.check_time()

    def take(self, size: int, so_far: int) -> None:
        """Count bytes that came.

        Raises:
            CapacityError: these are too many.
            InputError: the time is over.
        """
        self.check_time()
        if so_far > self._max_bytes:
            raise CapacityError(f"{self.name}: the image is over {self._max_bytes:,} bytes")
        self._budget.take(size)

    def check_time(self) -> None:
        """Look at the clock.

        Raises:
            InputError: the time is over.
        """
        if monotonic() > self._end:
            raise InputError(f"{self.name}: the image did not come within {self._timeout_s:g} s")

    def close(self) -> None:
        """Leave the socket alone from now on."""
        self._watchdog.cancel()

    def _cut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                # The method of the plain socket: that of TLS is not for two threads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Place(NamedTuple):
    """Where a URL leads, checked."""

    url: SplitResult
    port: int
    address: str


def connect(place: Place, timeout_s: float, fetch: Fetch) -> http.client.HTTPConnection:
    """Open a connection to the address that was checked, under the name of the URL.

    Raises:
        OSError: it cannot be opened.
        InputError: not in time.
    """
    host = place.url.hostname or ""
    raw = socket.create_connection((place.address, place.port), timeout=timeout_s)
    try:
        if place.url.scheme.lower() == "https":
            context = ssl.create_default_context()
            raw = context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
        fetch.use(raw)
        if isinstance(raw, ssl.SSLSocket):
            raw.do_handshake()
    except BaseException:
        raw.close()
        raise
    connection = http.client.HTTPConnection(host, place.port, timeout=timeout_s)
    connection.sock = raw
    return connection


def download(connection: http.client.HTTPConnection, url: SplitResult, fetch: Fetch) -> bytes:
    """Get a file.

    Raises:
        InputError: the host answers with something else, or not in time.
        CapacityError: the file is too large.
        OSError, http.client.HTTPException: the connection failed.
    """
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    headers = {"Host": url.netloc, "Accept": "image/*", "User-Agent": "kimivl"}
    connection.request("GET", path, headers=headers)
    with connection.getresponse() as response:
        if response.status != 200:
            raise InputError(
                f"{fetch.name}: the host answers with status {response.status}, where 200 is "
                "needed; redirects are not followed"
            )
        data = bytearray()
        while block := response.read1(_BLOCK_BYTES):
            data += block
            fetch.take(len(block), len(data))
    fetch.check_time()  # a socket that was shut looks like the end of a file
    return bytes(data)
