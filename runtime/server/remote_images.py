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
import ssl
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from ..errors import CapacityError, InputError
from ..prompt.images import MAX_FILE_BYTES

_TIMEOUT_S = 10.0
_BLOCK_BYTES = 1 << 16
_AT_ONCE = 4
_PORTS = {"http": 80, "https": 443}
_WEB = re.compile(r"https?://", re.IGNORECASE)
_SHOWN = 200

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# They carry an address of version 4, which may be an inner one: NAT64 (RFC 6052, 8215), 6to4.
_CARRIERS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to a machine of the internet, not of some inner network."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _CARRIERS):
            return False
        address = address.ipv4_mapped or address
    return address.is_global and not address.is_multicast


class _Place(NamedTuple):
    """Where a URL leads, checked."""

    url: SplitResult
    port: int
    address: str


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
            max_bytes: largest image file.
            max_images: most addresses of one request.
            timeout_s: until an image is here.
            may_connect: which addresses a host may have.
        """
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = min(max_bytes, MAX_FILE_BYTES)
        self._max_images = max_images
        self._timeout_s = timeout_s
        self._may_connect = may_connect

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
        limit = asyncio.Semaphore(_AT_ONCE)

        async def fetch(url: str) -> bytes:
            async with limit:
                return await asyncio.to_thread(self.fetch, url)

        files = dict(zip(urls, await asyncio.gather(*map(fetch, urls)), strict=True))
        return [_with_files(message, files) for message in messages]

    def fetch(self, url: str) -> bytes:
        """Fetch one file.

        Raises:
            InputError: the host is not listed, its address is not public, or it does not answer
                with a file.
            CapacityError: the file is too large.
        """
        name = url if len(url) <= _SHOWN else f"{url[:_SHOWN]}..."
        end = monotonic() + self._timeout_s
        try:
            place = self._locate(url, name)
            connection = _connect(place, self._timeout_s)
            try:
                return self._download(connection, place.url, name, end)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{name}: the image cannot be fetched: {reason}") from error

    def _locate(self, url: str, name: str) -> _Place:
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
        return _Place(parts, port or default, addresses[0])

    def _download(
        self, connection: http.client.HTTPConnection, url: SplitResult, name: str, end: float
    ) -> bytes:
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = {"Host": url.netloc, "Accept": "image/*", "User-Agent": "kimivl"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            raise InputError(
                f"{name}: the host answers with status {response.status}, where 200 is needed; "
                "redirects are not followed"
            )
        data = bytearray()
        while block := response.read1(_BLOCK_BYTES):
            data += block
            if len(data) > self._max_bytes:
                raise CapacityError(f"{name}: the image is over {self._max_bytes:,} bytes")
            if monotonic() > end:
                raise InputError(f"{name}: the image did not come within {self._timeout_s:g} s")
        return bytes(data)


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


def _connect(place: _Place, timeout_s: float) -> http.client.HTTPConnection:
    """Open a connection to the address that was checked, under the name of the URL."""
    host = place.url.hostname or ""
    plain = socket.create_connection((place.address, place.port), timeout=timeout_s)
    connection = http.client.HTTPConnection(host, place.port, timeout=timeout_s)
    try:
        is_safe = place.url.scheme.lower() == "https"
        context = ssl.create_default_context()
        connection.sock = context.wrap_socket(plain, server_hostname=host) if is_safe else plain
    except BaseException:
        plain.close()
        raise
    return connection
