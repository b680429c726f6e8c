"""What happens before a request is queued: others do not wait for it, and it can be ended."""

import io
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from runtime import Session
from runtime.prompt import encoder as encoder_module
from runtime.prompt.images import load_image
from runtime.prompt.messages import ImageSource
from runtime.server.gateway import ACCESS_LOG
from tests.runtime.server.served import (
    PATIENCE_S,
    Served,
    picture_message,
    serving,
    text_message,
    wait_until,
)
from tests.runtime.server.test_chat import EXAMPLES, data_url
from tests.runtime.server.test_connections import connect, head_of

SUM = text_message("What is 4 + 38?")
ONE, OTHER = (data_url(EXAMPLES / f"000{number}a.png") for number in (1, 2))


class Pictures:
    """Lets pictures be opened, or holds them; knows which were."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.opened: list[ImageSource] = []

    def load(self, source: ImageSource) -> PillowImage.Image:
        self.opened.append(source)
        assert self.free.wait(PATIENCE_S)
        return load_image(source)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pictures]:
    one = Pictures()
    monkeypatch.setattr(encoder_module, "load_image", one.load)
    yield one
    one.free.set()


def with_pictures(*urls: str) -> dict[str, object]:
    return {"messages": picture_message("Which?", *urls), "max_tokens": 1}


def send(served: Served, body: object) -> socket.socket:
    """Send a whole request and read nothing."""
    data = json.dumps(body).encode()
    client = connect(served)
    client.sendall(head_of(len(data)) + data)
    return client


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str | None]]:
    """Statuses and error codes of the access log."""
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == ACCESS_LOG]
    return [(line["status"], line.get("error")) for line in lines]


def test_texts_do_not_wait_for_pictures(served: Served, pictures: Pictures) -> None:
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(served.post, with_pictures(ONE, OTHER)) for _ in range(6)]
        wait_until(lambda: served.service.num_preparing == 6 and len(pictures.opened) == 2)
        assert served.post({"messages": SUM, "max_tokens": 1}).status_code == 200
        assert served.service.num_preparing == 6
        pictures.free.set()
        assert [one.result(PATIENCE_S).status_code for one in waiting] == [200] * 6


def test_a_picture_takes_its_turn_among_those_of_a_request_with_many(
    served: Served, pictures: Pictures
) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(served.post, with_pictures(*[ONE] * 8)) for _ in range(2)]
        wait_until(lambda: len(pictures.opened) == 2)
        waiting.append(pool.submit(served.post, with_pictures(OTHER)))
        queued = served.service.preparation._pictures._work_queue
        wait_until(lambda: queued.qsize() == 1)
        pictures.free.set()
        assert waiting[2].result(PATIENCE_S).status_code == 200
        assert [one.result(PATIENCE_S).status_code for one in waiting] == [200] * 3
    assert len(pictures.opened) == 17
    assert pictures.opened.index(OTHER) == 2


def test_a_request_is_over_its_time_though_its_pictures_are_still_opened(
    session: Session, pictures: Pictures
) -> None:
    with serving(session, request_timeout_s=0.3) as served:
        answer = served.post(with_pictures(*[ONE] * 8))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert "within 0.3 s" in answer.json()["error"]["message"]
        assert served.service.num_inside == 0
        assert served.stats.submitted == 0
    assert len(pictures.opened) == 1


def test_what_a_request_spent_on_its_pictures_is_part_of_its_time(
    served: Served, pictures: Pictures
) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.post, with_pictures(ONE))
        wait_until(lambda: bool(pictures.opened))
        time.sleep(0.3)
        pictures.free.set()
        assert asked.result(PATIENCE_S).status_code == 200
    served.wait_until_idle()
    numbers = served.numbers()
    assert numbers["kimivl_time_to_first_token_seconds_sum",] > 0.3
    assert numbers["kimivl_request_seconds_sum",] > 0.3
    assert numbers["kimivl_queue_seconds_sum",] < 0.3


def test_a_client_that_leaves_while_its_pictures_are_opened_takes_the_others_along(
    served: Served, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, ACCESS_LOG):
        with send(served, with_pictures(*[ONE] * 8)):
            wait_until(lambda: len(pictures.opened) == 1)
        wait_until(lambda: served.service.num_inside == 0)
        pictures.free.set()
        assert served.post({"messages": SUM, "max_tokens": 1}).status_code == 200
        wait_until(lambda: len(logged(caplog)) == 2)  # a line is written behind its answer
        served.wait_until_idle()
    assert len(pictures.opened) == 1
    assert logged(caplog) == [(499, "disconnected"), (200, None)]
    assert served.stats.submitted == 1


def test_a_client_that_leaves_in_its_body_is_noted_as_gone(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, ACCESS_LOG):
        with connect(served) as client:
            client.sendall(head_of(99) + b"{")
            wait_until(lambda: served.service.num_inside == 1)
        wait_until(lambda: served.service.num_inside == 0)
        wait_until(lambda: logged(caplog) == [(499, "disconnected")])


def test_a_signal_ends_requests_whose_pictures_are_opened(
    session: Session, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO),
        serving(session, drain_timeout_s=PATIENCE_S) as served,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(served.post, with_pictures(*[ONE] * 8)) for _ in range(4)]
        wait_until(lambda: served.service.num_preparing == 4 and len(pictures.opened) == 2)
        served.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: served.service.is_draining)
        assert not served.server.should_exit
        served.server.handle_exit(signal.SIGTERM, None)
        answers = [one.result(PATIENCE_S) for one in waiting]
        assert {answer.json()["error"]["code"] for answer in answers} == {"shutting_down"}
        wait_until(lambda: served.server.should_exit)
    assert len(pictures.opened) == 2
    assert logged(caplog) == [(503, "shutting_down")] * 4
    assert "Traceback" not in caplog.text


def test_a_signal_ends_a_request_whose_body_never_comes(session: Session) -> None:
    with serving(session, drain_timeout_s=0.1) as served, connect(served) as client:
        client.sendall(head_of(99) + b"{")
        wait_until(lambda: served.service.num_preparing == 1)
        served.server.handle_exit(signal.SIGTERM, None)
        assert client.recv(4096).startswith(b"HTTP/1.1 503 ")


def big_picture() -> bytes:
    """A PNG of 16 million pixels in a few kilobytes; opening it takes a tenth of a second."""
    file = io.BytesIO()
    PillowImage.new("RGB", (4000, 4000), (7, 9, 200)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_the_process_does_not_open_pictures_of_clients_that_left_before_it_ends(
    nano: Path, tmp_path: Path
) -> None:
    from tests.runtime.server.test_process import WHEEL, server_process

    path, log = tmp_path / "big.png", tmp_path / "log"
    path.write_bytes(big_picture())
    body = json.dumps(with_pictures(*[data_url(path)] * 16)).encode()
    with server_process(WHEEL, nano, log, "--drain-timeout", "60") as (process, url):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        clients = [socket.create_connection(address) for _ in range(8)]
        for client in clients[:4]:
            client.sendall(head_of(len(body)) + body)
            client.close()
        for client in clients[4:]:
            client.sendall(head_of(len(body)) + body)
        time.sleep(0.5)
        began = time.monotonic()
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        process.wait(PATIENCE_S)
        took_s = time.monotonic() - began
        for client in clients[4:]:
            client.close()
    assert process.returncode == 0
    assert took_s < 10, "128 pictures take three times as long"
    assert "Traceback" not in log.read_text()
