"""Images at addresses: fetched from a list of hosts, and from public addresses only.

A name of the list may point to an inner machine, by mistake or on purpose: what a name resolves to
is looked at, and that very address is connected to. Redirects are not followed. Nothing is fetched
unless a host was listed.
"""

import asyncio
import http.client
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..errors import CapacityError, InputError
from ..prompt.images import MAX_FILE_BYTES
from .image_download import Budget, Fetch, Place, connect, download

_TIMEOUT_S = 10.0
_AT_ONCE = 8
"""Of all requests together."""
_POLL_S = 0.02
_GRACE_S = 0.5
"""For a fetch that ends at its time to say so itself."""
_PORTS = {"http": 80, "https": 443}
_WEB = re.compile(r"https?://", re.IGNORECASE)
_SHOWN = 200

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# They carry an address of version 4, which may be an inner one: NAT64 (RFC 6052, 8215), 6to4.
_CARRIERS = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
# So did the older forms (RFC 4291, 2765); old site-local addresses (3879); segment routing (9602).
_OLD = ("::/96", "::ffff:0:0:0/96", "fec0::/10", "5f00::/16")
_SPECIAL = ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")  # not all known to each Python
_INNER = tuple(map(ipaddress.ip_network, (*_CARRIERS, *_OLD, *_SPECIAL)))


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to a machine of the internet, not of some inner network."""
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if any(address in network for network in _INNER):
        return False
    return address.is_global and not address.is_multicast


class RemoteImages:
    """Fetches the images of messages."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        max_bytes: int,
        max_images: int,
        timeout_s: float = _TIMEOUT_S,
        may_connect: Callable[[Address], bool] = is_public,
    ) -> None:
        """Configure; nothing is looked up.

        Args:
            hosts: names, or name:port for another port than the scheme's.
            max_bytes: largest image file, and the most of all images of one request.
            max_images: most addresses of one request.
            timeout_s: until an image is here.
            may_connect: which addresses a host may have.
        """
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_total, self._max_bytes = max_bytes, min(max_bytes, MAX_FILE_BYTES)
        self._max_images = max_images
        self._timeout_s = timeout_s
        self._may_connect = may_connect
        self._free = threading.BoundedSemaphore(_AT_ONCE)

    async def fetch_all(self, messages: Sequence[Any]) -> list[Any]:
        """Put the bytes of images where messages have `image_url` parts with http addresses.

        Args:
            messages: in OpenAI form, not checked.

        Raises:
            InputError: an image's host is not listed, or it cannot be fetched.
            CapacityError: an image is too large, or there are too many.
        """
        parts = [part for message in messages for part in _parts_of(message)]
        urls = list(dict.fromkeys(url for part in parts if (url := _url_of(part)) is not None))
        if not self._hosts or not urls:
            return list(messages)  # addresses are refused by whoever reads the messages
        if len(urls) > self._max_images:
            raise CapacityError(
                f"{len(urls)} images are over the server's limit of {self._max_images}"
            )
        budget = Budget(self._max_total)
        fetches = [self._fetch_in_time(url, budget) for url in urls]
        files = dict(zip(urls, await asyncio.gather(*fetches), strict=True))
        return [_with_files(message, files) for message in messages]

    async def _fetch_in_time(self, url: str, budget: Budget) -> bytes:
        """Fetch in a thread of its own, which is left alone when the time is over.

        Looking up a name cannot be stopped, and must keep neither the request nor the server from
        ending.
        """
        while not self._free.acquire(blocking=False):
            await asyncio.sleep(_POLL_S)
        future: Future[bytes] = Future()
        worker = partial(self._work, future, lambda: self.fetch(url, budget))
        threading.Thread(target=worker, name="kimivl-fetch", daemon=True).start()
        try:
            async with asyncio.timeout(self._timeout_s + _GRACE_S):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise InputError(
                f"{_shown(url)}: the image did not come within {self._timeout_s:g} s"
            ) from error

    def _work(self, future: "Future[bytes]", work: Callable[[], bytes]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(work())
        except Exception as error:  # noqa: BLE001  it is told to the request
            future.set_exception(error)
        finally:
            self._free.release()

    def fetch(self, url: str, budget: Budget | None = None) -> bytes:
        """Fetch one file.

        Args:
            url: where it is.
            budget: of the request that it belongs to; its own, if left out.

        Raises:
            InputError: the host is not listed, its address is not public, or it does not answer
                with a file, in time.
            CapacityError: the file is too large.
        """
        fetch = Fetch(
            _shown(url),
            max_bytes=self._max_bytes,
            budget=budget or Budget(self._max_total),
            timeout_s=self._timeout_s,
        )
        try:
            place = self._locate(url, fetch.name)
            connection = connect(place, self._timeout_s, fetch)
            try:
                return download(connection, place.url, fetch)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            fetch.check_time()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{fetch.name}: the image cannot be fetched: {reason}") from error
        finally:
            fetch.close()

    def _locate(self, url: str, name: str) -> Place:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
        default = _PORTS[parts.scheme.lower()]
        written = host if port in (None, default) else f"{host}:{port}"
        if written not in self._hosts:
            raise InputError(
                f"{name}: images of {written or 'no host'} are not fetched here; send the image "
                "as a data URL"
            )
        if parts.username is not None or parts.password is not None:
            raise InputError(f"{name}: addresses with a user name are not fetched")
        found = socket.getaddrinfo(host, port or default, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if not self._may_connect(ipaddress.ip_address(address.partition("%")[0])):
                raise InputError(f"{name}: {host} is at {address}, which is not public")
        return Place(parts, port or default, addresses[0])


def _shown(url: str) -> str:
    return url if len(url) <= _SHOWN else f"{url[:_SHOWN]}..."


def _parts_of(message: object) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, list) else []


def _with_files(message: Any, files: Mapping[str, bytes]) -> Any:  # noqa: ANN401  any JSON value
    parts = _parts_of(message)
    if not parts:
        return message
    put = [
        part if (url := _url_of(part)) is None else {"type": "image", "image": files[url]}
        for part in parts
    ]
    return {**message, "content": put}


def _url_of(part: object) -> str | None:
    """Find the web address of a part, if it is an image that has one."""
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return None
    value = part.get("image_url")
    url = value.get("url") if isinstance(value, dict) else value
    return url if isinstance(url, str) and _WEB.match(url) else None
