"""Chats through the official client."""

import asyncio
import base64
import json
import re
from enum import Enum
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel, Field

from runtime import Session
from tests.runtime.server.served import (
    CHAT,
    PATIENCE_S,
    Served,
    picture_message,
    serving,
    text_message,
)

ROOT = Path(__file__).resolve().parents[3]
SUM = text_message("What is 4 + 38?")
EXAMPLES = ROOT / "examples" / "nano" / "heldout"


class Comparison(Enum):
    LARGER = "larger"
    SMALLER = "smaller"


class Verdict(BaseModel):
    total: int = Field(ge=0, le=99)
    kind: Comparison


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def say_alone(session: Session, messages: list[Any]) -> dict[str, str]:
    """What `run` would say, without a server."""
    request = session.request(session.encode(messages))
    texts = {"thinking": "", "answer": ""}
    for piece in session.stream(request):
        texts[piece.channel] += piece.text
    return texts


def example(number: int) -> tuple[list[Any], str]:
    """A held-out question with its pictures as data URLs, and its answer."""
    fields = json.loads((EXAMPLES / "questions.jsonl").read_text().splitlines()[number])
    parts = fields["messages"][0]["content"]
    urls = [data_url(EXAMPLES / part["image"]) for part in parts if part["type"] == "image"]
    return picture_message(parts[-1]["text"], *urls), fields["answer"]


@pytest.fixture(scope="module")
def alone(session: Session) -> dict[str, str]:
    return say_alone(session, SUM)


def test_an_answer_holds_the_answer_alone_and_its_thinking_beside(
    served: Served, alone: dict[str, str]
) -> None:
    done = served.client().chat.completions.create(model="nano", messages=SUM)
    message = done.choices[0].message
    assert alone["thinking"]
    assert message.content == alone["answer"]
    assert message.model_dump()["reasoning_content"] == alone["thinking"]
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].logprobs is None
    usage = done.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert 0 < (usage.completion_tokens_details.reasoning_tokens or 0) < usage.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (done.model, done.object) == ("nano", "chat.completion")


def test_a_stream_gives_the_same_text_in_pieces_and_counts_when_asked(
    served: Served, alone: dict[str, str]
) -> None:
    chunks = list(
        served.client().chat.completions.create(
            model="nano-2", messages=SUM, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta["content"] or "" for delta in deltas) == alone["answer"]
    thinking = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert thinking == alone["thinking"]
    assert len(deltas) > 10
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, {chunk.id for chunk in chunks}) == ([], {chunks[0].id})
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens >= len(deltas) - 2
    assert {chunk.model for chunk in chunks} == {"nano-2"}
    served.wait_until_idle()


def test_a_stream_ends_with_done_and_holds_no_usage_unasked(served: Served) -> None:
    answer = served.post({"messages": SUM, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "usage" not in json.loads(events[0].removeprefix("data: "))


@pytest.mark.parametrize("number", [0, 1])
def test_a_picture_is_read(served: Served, number: int) -> None:
    messages, wanted = example(number)
    done = served.client().chat.completions.create(model="nano", messages=messages)
    assert done.choices[0].message.content == wanted


def test_several_pictures_of_one_message_are_read_in_order(served: Served) -> None:
    lines = (EXAMPLES / "questions.jsonl").read_text().splitlines()
    number = next(at for at, line in enumerate(lines) if line.count('"image":') == 2)
    messages, wanted = example(number)
    done = served.client().chat.completions.create(model="nano", messages=messages)
    assert done.choices[0].message.content == wanted
    assert served.stats.images_encoded == 2


def test_a_second_turn_computes_what_is_new(served: Served) -> None:
    messages, _ = example(1)
    client = served.client()
    first = client.chat.completions.create(model="nano", messages=messages)
    said = first.choices[0].message
    encoded = served.stats.images_encoded
    # As clients do it: with everything that the answer had.
    more = [*messages, said.model_dump(), *text_message("And which is larger?")]
    second = client.chat.completions.create(model="nano", messages=more)
    usage = second.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens or 0
    assert first.usage is not None
    assert first.usage.prompt_tokens <= cached < usage.prompt_tokens
    assert served.stats.images_encoded == encoded


def test_thinking_that_is_sent_back_is_not_part_of_the_prompt(served: Served) -> None:
    answer = {"role": "assistant", "content": "42"}
    without = [*SUM, answer, *text_message("Why?")]
    beside = [*SUM, {**answer, "reasoning_content": "4+38 " * 9}, *text_message("Why?")]
    inside = [*SUM, {**answer, "content": "◁think▷4+38◁/think▷42"}, *text_message("Why?")]
    counts = [
        served.post({"messages": messages, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
        for messages in (without, beside, inside)
    ]
    assert counts == [counts[0]] * 3


def test_parse_gives_an_object_of_the_schema(served: Served) -> None:
    done = served.client().chat.completions.parse(
        model="nano", messages=SUM, response_format=Verdict, max_tokens=200, seed=1
    )
    choice = done.choices[0]
    assert choice.finish_reason == "stop"
    parsed = choice.message.parsed
    assert isinstance(parsed, Verdict)
    assert choice.message.content is not None
    assert json.loads(choice.message.content) == {"total": parsed.total, "kind": parsed.kind.value}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("response_format", {"type": "json_object"}, r"\{.*"),
        ("guided_regex", "[a-c]{3}", "[a-c]{3}"),
        ("guided_choice", ["left (or so)", "right"], r"left \(or so\)|right"),
        ("guided_grammar", 'start: "x" /[0-9]/', "x[0-9]"),
    ],
)
def test_an_answer_follows_what_is_asked(
    served: Served, field: str, value: object, wanted: str
) -> None:
    answer = served.post({"messages": SUM, field: value, "max_tokens": 60})
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][0]["message"]["content"]
    assert re.fullmatch(wanted, content, re.DOTALL)


def test_logprobs_are_those_of_the_answer_and_best_first(
    served: Served, alone: dict[str, str]
) -> None:
    done = served.client().chat.completions.create(
        model="nano", messages=SUM, logprobs=True, top_logprobs=3
    )
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == alone["answer"]
    for token in tokens:
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
        assert token.logprob == values[0] <= 0, "greedy takes the best"
    streamed = served.client().chat.completions.create(
        model="nano", messages=SUM, logprobs=True, stream=True
    )
    in_pieces = [
        token.token
        for chunk in streamed
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert in_pieces == [token.token for token in tokens]


def test_a_stop_string_ends_the_answer_before_it(served: Served, alone: dict[str, str]) -> None:
    last = alone["answer"][-1]
    done = served.client().chat.completions.create(model="nano", messages=SUM, stop=[last])
    content = done.choices[0].message.content
    assert content is not None
    assert last not in content
    assert done.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_drawn_answer_and_another_draws_another(served: Served) -> None:
    client = served.client()

    def ask(seed: int) -> Any:  # noqa: ANN401  the client's own
        done = client.chat.completions.create(
            model="nano", messages=SUM, seed=seed, temperature=3, max_tokens=20
        )
        return done.choices[0].message.model_dump()

    assert ask(1) == ask(1)
    assert len({json.dumps(ask(seed)) for seed in range(4)}) > 1


def test_the_newer_name_of_max_tokens_cuts_an_answer(served: Served) -> None:
    done = served.client().chat.completions.create(
        model="nano", messages=SUM, max_completion_tokens=2
    )
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 2


@pytest.mark.parametrize("field", [{"reasoning_effort": "none"}, {"thinking_token_budget": 0}])
def test_thinking_can_be_kept_short(served: Served, field: dict[str, Any]) -> None:
    free, short = served.post({"messages": SUM}), served.post({"messages": SUM, **field})

    def reasoning(answer: httpx2.Response) -> int:
        count: int = answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"]
        return count

    assert reasoning(short) < reasoning(free)
    assert short.json()["choices"][0]["message"]["content"]


def test_a_client_that_says_developer_means_system(served: Served) -> None:
    counts = [
        served.post(
            {"messages": [{"role": role, "content": "Add."}, *SUM], "max_tokens": 1}
        ).json()["usage"]["prompt_tokens"]
        for role in ("system", "developer")
    ]
    assert counts[0] == counts[1]


def test_the_models_are_listed_and_described(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["nano", "nano-2"]
    assert client.models.retrieve("nano-2").owned_by == "kimivl"
    with pytest.raises(openai.NotFoundError, match="no model of that name"):
        client.models.retrieve("other")


def test_the_server_bounds_answers_that_do_not(session: Session) -> None:
    with serving(session, max_new_tokens=3) as served:
        done = served.post({"messages": SUM}).json()
        assert (done["choices"][0]["finish_reason"], done["usage"]["completion_tokens"]) == (
            "length",
            3,
        )
        refused = served.post({"messages": SUM, "max_tokens": 4})
        assert refused.status_code == 400
        assert "over the server's limit of 3" in refused.json()["error"]["message"]


def test_the_asynchronous_client_streams_too(served: Served, alone: dict[str, str]) -> None:
    async def ask() -> str:
        client = openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )
        async with client:
            stream = await client.chat.completions.create(model="nano", messages=SUM, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == alone["answer"]


def test_answers_are_ascii_so_that_no_reader_takes_a_character_for_a_line_end(
    served: Served,
) -> None:
    body = {"messages": SUM, "stream": True, "guided_choice": ["a\u2028b\u0085c\u00e9"]}
    answer = httpx2.post(f"{served.url}{CHAT}", json=body, timeout=PATIENCE_S)
    assert answer.content.isascii()
    assert "\\u2028" in answer.text
