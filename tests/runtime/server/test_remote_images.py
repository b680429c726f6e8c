"""Images at addresses: from listed hosts, public machines, whole and in time, or not at all."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from runtime import Session
from runtime.errors import CapacityError, InputError
from runtime.server.remote_images import Address, RemoteImages, is_public
from tests.runtime.server.served import PATIENCE_S, picture_message, serving, wait_until
from tests.runtime.server.test_chat import EXAMPLES

PICTURE = (EXAMPLES / "0001a.png").read_bytes()


class Handler(BaseHTTPRequestHandler):
    """A host with a picture, a redirect, something endless and something slow."""

    seen: ClassVar[list[tuple[str, str]]] = []
    stop: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        path = self.path.partition("?")[0]
        if path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/one.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith(("/drip", "/silent")):
            self.drip(path)
            return
        self.send_response(200 if path in ("/one.png", "/endless", "/slow") else 404)
        self.end_headers()
        if path == "/one.png":
            self.wfile.write(PICTURE)
        while path in ("/endless", "/slow") and not self.stop.wait(0.02 if path == "/slow" else 0):
            try:
                self.wfile.write(b"x" * (1 if path == "/slow" else 65536))
            except OSError:
                return

    def drip(self, path: str) -> None:
        """Begin a head, or the length of a chunk, that never ends; or say nothing."""
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        starts = {"/drip-head": b"HTTP/1.1 200 OK\r\nX: ", "/drip-chunk": chunked, "/silent": b""}
        self.wfile.write(starts[path])
        while not self.stop.wait(0.02):
            with contextlib.suppress(OSError):
                self.wfile.write(b"" if path == "/silent" else b"1")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401  the base's
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`pictures.example` and a port; the name leads to a server in this process."""
    Handler.seen.clear()
    Handler.stop.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    resolve = socket.getaddrinfo

    def find(name: str, *words: Any, **more: Any) -> Any:  # noqa: ANN401  the library's own
        real = "127.0.0.1" if name == "pictures.example" else name
        return resolve(real, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", find)
    yield f"pictures.example:{server.server_address[1]}"
    Handler.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


def anywhere(address: Address) -> bool:
    return True


def fetcher(host: str, *, max_bytes: int = 1 << 20, timeout_s: float = 5.0) -> RemoteImages:
    return RemoteImages(
        [host], max_bytes=max_bytes, max_images=2, timeout_s=timeout_s, may_connect=anywhere
    )


def test_a_picture_of_a_listed_host_is_fetched_under_its_name(host: str) -> None:
    assert fetcher(host).fetch(f"http://{host}/one.png?size=1") == PICTURE
    assert Handler.seen == [("/one.png?size=1", host)]


@pytest.mark.parametrize(
    ("path", "words"),
    [("elsewhere", "status 302.*redirects are not followed"), ("none", "status 404")],
)
def test_anything_but_the_file_itself_is_refused(host: str, path: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fetcher(host).fetch(f"http://{host}/{path}")
    assert len(Handler.seen) == 1


def test_a_file_that_is_too_large_or_too_slow_is_left(host: str) -> None:
    with pytest.raises(CapacityError, match="over 1,000 bytes"):
        fetcher(host, max_bytes=1000).fetch(f"http://{host}/endless")
    with pytest.raises(InputError, match=r"did not come within 0\.2 s"):
        fetcher(host, timeout_s=0.2).fetch(f"http://{host}/slow")


@pytest.mark.parametrize("path", ["drip-head", "drip-chunk", "silent"])
def test_a_host_that_drips_is_left_at_the_end_of_the_time_whatever_it_drips(
    host: str, path: str
) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"did not come within 0\.3 s"):
        fetcher(host, timeout_s=0.3).fetch(f"http://{host}/{path}")
    assert time.monotonic() - began < 5


def test_a_name_that_is_never_found_keeps_neither_a_request_nor_the_end(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = threading.Event()
    resolve = socket.getaddrinfo

    def hang(name: object, *words: Any, **more: Any) -> Any:  # noqa: ANN401  the library's own
        if name == "lost.example":
            assert found.wait(PATIENCE_S)
        return resolve("127.0.0.1", *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    body = {"messages": picture_message("Which?", "http://lost.example/one.png")}
    with serving(session, image_hosts=("lost.example",), drain_timeout_s=0.1) as served:
        served.service.preparation._images = fetcher("lost.example", timeout_s=0.2)
        refused = served.post(body)
        assert refused.status_code == 400
        assert "did not come within 0.2 s" in refused.json()["error"]["message"]
        served.service.preparation._images = fetcher("lost.example", timeout_s=PATIENCE_S)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(served.post, body)
            wait_until(lambda: served.service.num_preparing == 1)
            served.server.handle_exit(signal.SIGTERM, None)
            assert waiting.result(PATIENCE_S).status_code == 503
        wait_until(lambda: served.server.should_exit)
    found.set()


def test_images_of_one_request_are_bounded_together(host: str) -> None:
    images = fetcher(host, max_bytes=len(PICTURE) * 3 // 2)
    urls = [f"http://{host}/one.png?{number}" for number in (1, 2)]
    assert asyncio.run(images.fetch_all(picture_message("Which?", urls[0])))
    with pytest.raises(CapacityError, match=r"over .* bytes together"):
        asyncio.run(images.fetch_all(picture_message("Which?", *urls)))


def test_a_listed_host_at_an_inner_address_is_refused_before_it_is_asked(host: str) -> None:
    with pytest.raises(InputError, match=r"is at 127\.0\.0\.1, which is not public"):
        RemoteImages([host], max_bytes=1 << 20, max_images=2).fetch(f"http://{host}/one.png")
    assert Handler.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/one.png",
        "http://pictures.example/one.png",
        "http://pictures.example.:{port}/one.png",
        "http://pictures.example:{port}@other.example/one.png",
        "http://other.example:{port}/pictures.example",
        "http://127.0.0.1:{port}/one.png",
        "http://[::1]:{port}/one.png",
        "http://pictures.example:{port}x/one.png",
        "http:///one.png",
        "https://",
    ],
)
def test_only_the_listed_name_and_port_are_asked(host: str, url: str) -> None:
    port = host.partition(":")[2]
    with pytest.raises(InputError, match=r"are not fetched here|Port could not be cast"):
        fetcher(host).fetch(url.format(port=port))
    assert Handler.seen == []


def test_a_user_name_in_an_address_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="with a user name"):
        fetcher(host).fetch(f"http://me:secret@{host}/one.png")
    assert Handler.seen == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.1.2.3", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a01:203", False),
        ("64:ff9b:1::a01:203", False),
        ("2002:a01:203::1", False),
        ("fec0::1", False),
        ("::7f00:1", False),
        ("::10.0.0.1", False),
        ("::ffff:0:7f00:1", False),
        ("5f00::1", False),
        ("192.0.0.9", False),
        ("3fff::1", False),
        ("::ffff:93.184.216.34", True),
    ],
)
def test_inner_addresses_are_told_from_public_ones(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_messages_get_bytes_where_they_had_addresses_and_nothing_else_changes(host: str) -> None:
    url = f"http://{host}/one.png"
    odd: list[Any] = [None, {"role": "user"}, {"content": "http://x/"}, {"content": [3, {}]}]
    messages = [*picture_message("Which?", url, "data:image/png;base64,AAAA"), *odd]
    found = asyncio.run(fetcher(host).fetch_all(messages))
    parts = found[0]["content"]
    assert parts[0] == {"type": "image", "image": PICTURE}
    assert parts[1:] == messages[0]["content"][1:]
    assert found[1:] == odd


def test_an_address_is_fetched_once_and_too_many_are_none(host: str) -> None:
    urls = [f"http://{host}/one.png?{number}" for number in (1, 1, 2, 3)]
    images = fetcher(host)
    found = asyncio.run(images.fetch_all(picture_message("Which?", *urls[:3])))
    assert [part.get("image") for part in found[0]["content"]] == [PICTURE] * 3 + [None]
    assert len(Handler.seen) == 2
    with pytest.raises(CapacityError, match="3 images are over the server's limit of 2"):
        asyncio.run(images.fetch_all(picture_message("Which?", *urls)))
    assert len(Handler.seen) == 2


def test_without_listed_hosts_nothing_is_fetched(host: str) -> None:
    messages = picture_message("Which?", f"http://{host}/one.png")
    images = RemoteImages([], max_bytes=1 << 20, max_images=2, may_connect=anywhere)
    assert asyncio.run(images.fetch_all(messages)) == messages
    assert Handler.seen == []


def test_a_server_reads_a_picture_from_a_listed_host(session: Session, host: str) -> None:
    with serving(session, image_hosts=(host,)) as served:
        served.service.preparation._images = fetcher(host)
        body = {"messages": picture_message("Which number is this?", f"http://{host}/one.png")}
        assert served.post(body).json()["choices"][0]["message"]["content"] == "40"
        body = {"messages": picture_message("Which number is this?", "http://b.example/one.png")}
        refused = served.post(body)
        assert refused.status_code == 400
        assert "b.example are not fetched here" in refused.json()["error"]["message"]
        broken = {"messages": picture_message("Which?", f"http://{host}/none")}
        assert served.post(broken).status_code == 400
