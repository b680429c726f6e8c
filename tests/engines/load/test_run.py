"""Requests on their way: how they come, how each is timed, how each can fail."""

import base64
import contextlib
import itertools
import math
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.load.asked import Question, draw_questions
from engines.load.endpoint import Heard, Used, Wishes
from engines.load.opening import connect
from engines.load.run import Load, Sample, arrivals, run_load
from runtime.errors import InputError, KimiVLError
from runtime.prompt.messages import Image, Message, Text
from tests.engines.load.fake_openai import Behaviour, Write, delta, say, serving, usage

PICTURE = Path(__file__).resolve().parents[3] / "examples" / "numbers.png"
WISHES = Wishes(max_new_tokens=32, timeout_s=60)
PLAIN = Question(messages=[{"role": "user", "content": "Hello."}], num_images=0)


def run(
    behaviour: Behaviour, count: int, load: Load | None = None, wishes: Wishes = WISHES
) -> list[Sample]:
    with serving(behaviour) as url:
        endpoint = connect(url, wishes)
        return run_load(endpoint, [PLAIN] * count, load or Load(concurrency=1, num_warmups=0))


def with_picture(text: str, source: Any = PICTURE) -> Question:  # noqa: ANN401
    parts = (Image(source=source), Text(text=text))
    return Question.of([Message(role="user", parts=parts)])


def test_times_count_from_when_a_request_was_due() -> None:
    (sample,) = run(Behaviour(answer=say("a", "b", "c", pause_s=0.05, new=5)), 1)
    assert sample.used is not None
    assert (sample.used.prompt_tokens, sample.used.cached_tokens, sample.used.new_tokens) == (
        *(10, 4, 5),
    )
    assert len(sample.heard_s) == 3
    assert sample.time_to_first_token_s == pytest.approx(sample.heard_s[0] - sample.due_s)
    # In this dialect a part with text counts as one token, whatever the usage says.
    assert sample.time_per_token_s == pytest.approx((sample.heard_s[2] - sample.heard_s[0]) / 2)
    assert sample.due_s == sample.sent_s < sample.heard_s[0] < sample.heard_s[2] < sample.end_s
    assert sample.total_s == sample.end_s - sample.due_s


class Scripted:
    """An endpoint that answers as a function says."""

    def __init__(self, answer: Callable[[Question, Callable[[Heard], None]], None]) -> None:
        self.answer = answer

    @property
    def description(self) -> dict[str, str]:
        return {"model": "scripted"}

    def ask(self, question: Question, hear: Callable[[Heard], None]) -> Used:
        self.answer(question, hear)
        return Used(prompt_tokens=1, cached_tokens=0, new_tokens=9)


def test_time_per_token_counts_the_tokens_behind_the_first_part() -> None:
    def answer(question: Question, hear: Callable[[Heard], None]) -> None:
        for num_tokens, has_text in ((5, False), (2, True), (1, True), (1, False)):
            hear(Heard(num_tokens=num_tokens, has_text=has_text))
            time.sleep(0.02)

    (sample,) = run_load(Scripted(answer), [PLAIN], Load(concurrency=1, num_warmups=0))
    assert len(sample.tokens_s) == 9
    assert len(sample.heard_s) == 2
    first, last = sample.tokens_s[0], sample.tokens_s[-1]
    assert sample.time_per_token_s == pytest.approx((last - first) / 4)
    assert sample.heard_s[0] > first


def test_a_mistake_in_one_request_is_a_failure_with_its_class() -> None:
    def answer(question: Question, hear: Callable[[Heard], None]) -> None:
        if question is not PLAIN:
            raise ZeroDivisionError("by zero")

    other = Question(messages=[], num_images=0)
    samples = run_load(Scripted(answer), [PLAIN, other], Load(concurrency=1, num_warmups=0))
    assert [one.failure for one in samples] == [None, "ZeroDivisionError"]
    assert samples[1].message == "by zero"


def test_warmups_are_the_first_questions_and_a_failed_one_is_told() -> None:
    asked: list[Question] = []
    warnings: list[str] = []

    def answer(question: Question, hear: Callable[[Heard], None]) -> None:
        asked.append(question)
        if len(asked) <= 2:
            time.sleep(0.1)
        if len(asked) == 2:
            raise ZeroDivisionError("by zero")

    questions = [Question(messages=[{"n": number}], num_images=0) for number in range(5)]
    load = Load(concurrency=1, num_warmups=2)
    samples = run_load(Scripted(answer), questions, load, warn=warnings.append)
    assert asked == questions
    assert len(samples) == 3
    assert samples[0].due_s < 0.1  # the run begins behind its warm-ups
    assert warnings == ["a warm-up failed with ZeroDivisionError: by zero"]


def test_what_no_thread_was_free_for_is_sent_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(question: Question, hear: Callable[[Heard], None]) -> None:
        time.sleep(0.1)

    monkeypatch.setattr("engines.load.run.MAX_IN_FLIGHT", 1)
    load = Load(concurrency=None, rate=1000, num_warmups=0)
    samples = run_load(Scripted(answer), [PLAIN] * 3, load)
    assert [one.due_s for one in samples] == list(itertools.islice(arrivals(1000, 0), 3))
    assert samples[2].sent_s - samples[2].due_s > 0.15
    assert samples[2].total_s > 0.25


def test_interrupted_it_returns_at_once_and_asks_nothing_more() -> None:
    asked, go_on = threading.Semaphore(0), threading.Event()

    def answer(question: Question, hear: Callable[[Heard], None]) -> None:
        asked.release()
        if question is not PLAIN:
            assert go_on.wait(10)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    questions = [PLAIN, *(Question(messages=[], num_images=0) for _ in range(9))]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_load(Scripted(answer), questions, Load(concurrency=2, num_warmups=0), interrupt)
    assert time.monotonic() - start < 5
    go_on.set()
    left = [one for one in threading.enumerate() if one.name == "load"]
    assert all(one.daemon for one in left)
    for one in left:
        one.join(10)
    assert sum(asked.acquire(blocking=False) for _ in range(10)) <= 3


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_counts_as_text_and_an_empty_piece_does_not(name: str) -> None:
    def answer(number: int, write: Write) -> None:
        write(delta("", name="content"))
        write(delta("hm", name=name) | {"error": None})
        write(usage(3, 1))

    (sample,) = run(Behaviour(answer=answer), 1)
    assert len(sample.heard_s) == 1
    assert sample.failure is None
    assert sample.time_per_token_s is None


def test_so_many_clients_ask_at_a_time_and_warmups_are_not_counted() -> None:
    behaviour = Behaviour(answer=say("a", pause_s=0.03))
    samples = run(behaviour, 14, Load(concurrency=3, num_warmups=2))
    assert len(samples) == 12
    assert len(behaviour.bodies) == 14
    assert behaviour.most_at_once == 3
    assert [one.due_s for one in samples] == sorted(one.due_s for one in samples)


def test_at_a_rate_requests_come_whatever_is_answered() -> None:
    behaviour = Behaviour(answer=say("a", pause_s=0.3))
    samples = run(behaviour, 10, Load(concurrency=None, rate=100, num_warmups=0, seed=3))
    assert [one.due_s for one in samples] == list(itertools.islice(arrivals(100, 3), 10))
    assert behaviour.most_at_once >= 6
    assert all(one.total_s >= 0.3 for one in samples)


def test_arrivals_are_a_poisson_process_that_its_seed_repeats() -> None:
    times = list(itertools.islice(arrivals(4.0, 1), 4000))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)
    assert times == list(itertools.islice(arrivals(4.0, 1), 4000))
    assert times[:5] != list(itertools.islice(arrivals(4.0, 2), 5))


def drop(number: int, write: Write) -> None:
    write(delta("a"))


def stall(number: int, write: Write) -> None:
    write(delta("a"))
    time.sleep(1)


def drip(number: int, write: Write) -> None:
    for _ in range(20):
        write(delta("a"))
        time.sleep(0.05)


def break_json(number: int, write: Write) -> None:
    write("{")


def only_comment(number: int, write: Write) -> None:
    for _ in range(100):
        write(b": still here\n")
        time.sleep(0.02)


def never_end_the_line(number: int, write: Write) -> None:
    write(b"data: ")
    for _ in range(100):
        write(b"x")
        time.sleep(0.02)


def send_one_long_line(number: int, write: Write) -> None:
    write(b"data: " + b"x" * (2 << 20))


def nest(number: int, write: Write) -> None:
    write("[" * 200_000)


def say_boom(number: int, write: Write) -> None:
    write({"error": "boom"})


def fail_late(number: int, write: Write) -> None:
    write(delta("a"))
    write({"error": {"message": "the engine failed", "code": "engine_failed"}})


@pytest.mark.parametrize(
    ("answer", "timeout_s", "kind", "message"),
    [
        (drop, 30, "cut", "without its usage"),
        (stall, 0.3, "timeout", r"within 0\.3 s"),
        (drip, 0.3, "timeout", r"within 0\.3 s"),
        (only_comment, 0.3, "timeout", r"within 0\.3 s"),
        (never_end_the_line, 0.3, "timeout", r"within 0\.3 s"),
        (send_one_long_line, 30, "malformed", "a line of 1048576 bytes or more"),
        (nest, 30, "malformed", "RecursionError"),
        (say_boom, 30, "error", "^boom$"),
        (break_json, 30, "malformed", "JSONDecodeError"),
        (fail_late, 30, "engine_failed", "the engine failed"),
    ],
)
def test_a_request_without_a_whole_answer_fails_with_a_kind(
    answer: Callable[[int, Write], None], timeout_s: float, kind: str, message: str
) -> None:
    wishes = Wishes(max_new_tokens=4, timeout_s=timeout_s)
    (sample,) = run(Behaviour(answer=answer), 1, wishes=wishes)
    assert (sample.used, sample.failure) == (None, kind)
    assert re.search(message, sample.message)
    assert sample.total_s < timeout_s + 0.8


def test_an_errors_body_that_does_not_end_is_bounded_by_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip_an_error, args=(server,))
        thread.start()
        endpoint = connect(f"http://127.0.0.1:{server.getsockname()[1]}", Wishes(**SHORT))
        (sample,) = run_load(endpoint, [PLAIN], Load(concurrency=1, num_warmups=0))
        thread.join()
    assert (sample.failure, sample.total_s < 1.2) == ("timeout", True)


SHORT: dict[str, Any] = {"max_new_tokens": 1, "timeout_s": 0.4}


def drip_an_error(server: socket.socket) -> None:
    """Name a model, then answer with an error that grows for two seconds."""
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        body = b'{"data": [{"id": "kimi"}]}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    connection, _ = server.accept()
    with connection, contextlib.suppress(ConnectionError):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 500 Broken\r\nContent-Length: 99999\r\n\r\n")
        for _ in range(40):
            connection.sendall(b"x")
            time.sleep(0.05)


def test_one_failure_leaves_the_others_alone() -> None:
    behaviour = Behaviour(answer=say("a"), status=lambda number: 429 if number % 3 == 0 else 200)
    samples = run(behaviour, 9)
    assert [one.failure for one in samples] == ["429", None, None] * 3
    assert samples[0].message == "come again"


def test_every_request_asks_for_what_is_wished() -> None:
    behaviour = Behaviour(answer=say("a"), models=("first", "second"))
    wishes = Wishes(max_new_tokens=7, timeout_s=10, model="second", api_key="secret")
    run(behaviour, 1, wishes=wishes)
    assert behaviour.keys == ["Bearer secret"]
    (body,) = behaviour.bodies
    assert body["messages"] == PLAIN.messages
    assert (body["model"], body["max_tokens"], body["stream"]) == ("second", 7, True)
    assert body["stream_options"] == {"include_usage": True}


def test_addresses_that_nobody_answers_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(KimiVLError, match="no endpoint of OpenAI's dialect answers"):
        connect(f"http://127.0.0.1:{port}", WISHES)
    with pytest.raises(KimiVLError, match="no Triton server answers"):
        connect(f"grpc://127.0.0.1:{port}", Wishes(max_new_tokens=1, timeout_s=2))
    for url in ("127.0.0.1:80", "ftp://a", "grpc://host", "http://host:x"):
        with pytest.raises(InputError, match=r"expected http|Port could not"):
            connect(url, WISHES)
    for url in ("http://[::1", "grpc://[::1:1"):
        with pytest.raises(InputError, match="Invalid IPv6"):
            connect(url, WISHES)
    with serving(Behaviour(answer=say("a"))) as url:
        assert connect(f"{url}/v1", WISHES).description["model"] == "kimi"
        with pytest.raises(KimiVLError, match="no model 'other'; it has kimi"):
            connect(url, Wishes(max_new_tokens=1, timeout_s=2, model="other"))


def test_passwords_and_keys_that_are_not_sent_are_refused_and_not_shown() -> None:
    for url in ("http://me:secret@host", "grpc://me:secret@host:1", "http://me:secret@host:x"):
        with pytest.raises(InputError) as raised:
            connect(url, WISHES)
        assert "secret" not in str(raised.value)
    with pytest.raises(InputError, match="takes no API key"):
        connect("grpc://host:1", Wishes(max_new_tokens=1, timeout_s=1, api_key="secret"))


def test_addresses_of_ipv6_have_their_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "engines.load.opening.TritonEndpoint", lambda address, *_: asked.append(address)
    )
    connect("grpc://[::1]:8001", WISHES)
    connect("grpc://host:8001", WISHES)
    assert asked == ["[::1]:8001", "host:8001"]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.inf, math.nan, 1e12])
def test_a_timeout_that_cannot_be_waited_for_is_refused(timeout_s: float) -> None:
    with pytest.raises(InputError, match=r"timeout: expected 0\.001 to 86400 seconds"):
        Wishes(max_new_tokens=1, timeout_s=timeout_s)


def test_a_load_without_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="either a concurrency or a rate"):
        Load(rate=3)
    for rate in (-1.0, 0.0, math.inf, math.nan, 1e-300):
        with pytest.raises(InputError, match=r"rate: expected 0\.001 to 10000, found"):
            Load(concurrency=None, rate=rate)
    with pytest.raises(InputError, match="concurrency: expected 1 to"):
        Load(concurrency=0)


def test_pictures_travel_as_data_urls() -> None:
    question = with_picture("Add.")
    (message,) = question.messages
    url = message["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert base64.b64decode(url.partition(",")[2]) == PICTURE.read_bytes()
    assert question.num_images == 1
    assert with_picture("Add.", url).messages == question.messages
    text = question.without_images()
    assert (text.messages, text.num_images) == ([{"role": "user", "content": "Add."}], 0)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(InputError, match="not an image of png, jpeg"):
        with_picture("Add.", tmp_path / "a.png")
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        with_picture("Add.", tmp_path / "gone.png")


def test_questions_are_drawn_evenly_and_some_without_their_pictures() -> None:
    questions = [with_picture(f"Add {number}.") for number in range(5)]
    drawn = draw_questions(questions, 12, seed=1)
    texts = [one.messages[0]["content"][1]["text"] for one in drawn]
    assert sorted(texts[:5]) == sorted(texts[5:10]) == [f"Add {n}." for n in range(5)]
    assert drawn == draw_questions(questions, 12, seed=1) != draw_questions(questions, 12, seed=2)
    mixed = draw_questions(questions, 400, text_share=0.25)
    assert 70 <= sum(one.num_images == 0 for one in mixed) <= 130
