"""Requests on their way: how they come, how each is timed, how each can fail."""

import base64
import itertools
import re
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.load.asked import Question, draw_questions
from engines.load.endpoint import Wishes, connect
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
    assert sample.time_per_token_s == pytest.approx((sample.heard_s[2] - sample.heard_s[0]) / 4)
    assert sample.total_s >= 0.15
    assert sample.heard_s[2] - sample.heard_s[0] >= 0.1


def test_thinking_counts_as_text_and_an_empty_piece_does_not() -> None:
    def answer(number: int, write: Write) -> None:
        write(delta("", name="content"))
        write(delta("hm", name="reasoning_content"))
        write(usage(3, 1))

    (sample,) = run(Behaviour(answer=answer), 1)
    assert len(sample.heard_s) == 1
    assert sample.time_per_token_s is None


def test_so_many_clients_ask_at_a_time_and_warmups_are_not_counted() -> None:
    behaviour = Behaviour(answer=say("a", pause_s=0.03))
    samples = run(behaviour, 12, Load(concurrency=3, num_warmups=2))
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


def fail_late(number: int, write: Write) -> None:
    write(delta("a"))
    write({"error": {"message": "the engine failed", "code": "engine_failed"}})


@pytest.mark.parametrize(
    ("answer", "timeout_s", "kind", "message"),
    [
        (drop, 30, "cut", "without its usage"),
        (stall, 0.3, "timeout", r"within 0\.3 s"),
        (drip, 0.3, "timeout", r"within 0\.3 s"),
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
    with serving(Behaviour(answer=say("a"))) as url:
        assert connect(f"{url}/v1", WISHES).description["model"] == "kimi"
        with pytest.raises(KimiVLError, match="no model 'other'; it has kimi"):
            connect(url, Wishes(max_new_tokens=1, timeout_s=2, model="other"))


def test_a_load_without_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="either a concurrency or a rate"):
        Load(rate=3)
    with pytest.raises(InputError, match="rate: expected a positive number"):
        Load(concurrency=None, rate=-1)
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
