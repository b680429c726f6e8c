"""Requests that are refused: with the right status, by name, and without a trace."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from runtime import Session
from runtime.server import body, preparing
from tests.runtime.server.served import CHAT, PATIENCE_S, Served, serving, text_message
from tests.runtime.server.test_connections import connect, head_of

HELLO = text_message("Add.")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def served(session: Session) -> Iterator[Served]:
    with serving(session, max_body_bytes=100_000, max_images=2) as one:
        yield one


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(served: Served) -> Iterator[None]:
    yield
    served.wait_until_idle()


def post_raw(served: Served, body: bytes, kind: str = "application/json") -> httpx2.Response:
    return httpx2.post(
        f"{served.url}{CHAT}", content=body, headers={"content-type": kind}, timeout=PATIENCE_S
    )


def image(url: object) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": None}, "messages", "messages: is missing"),
        ({"messages": "Add."}, "messages", "expected array, found string"),
        ({"temperature": "hot"}, "temperature", "expected number, found string"),
        ({"temperature": True}, "temperature", "expected number, found boolean"),
        ({"temperature": -1}, "temperature", "at least 0"),
        ({"temperature": 10**400}, "temperature", "too large"),
        ({"top_p": 1.5}, "top_p", "at most 1"),
        ({"seed": 1.5}, "seed", "expected integer"),
        ({"repetition_penalty": 1e-310, "temperature": 1}, "repetition_penalty", "at least 0.01"),
        ({"repetition_penalty": 101}, "repetition_penalty", "at most 100"),
        ({"verbosity": "low"}, "verbosity", "say in a message"),
        ({"audio": {"voice": "x"}}, "audio", "answers are text"),
        ({"moderation": {}}, "moderation", "ask a moderation model"),
        ({"web_search_options": {}}, "web_search_options", "nothing is searched for"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differs from"),
        ({"n": 2}, "n", "send the request n times"),
        ({"tools": [{"type": "function"}]}, "tools", "no place for them"),
        ({"functions": [{}]}, "functions", "no place for them"),
        ({"tool_choice": "required"}, "tool_choice", "not implemented"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "use repetition_penalty"),
        ({"logit_bias": {"50": 1}}, "logit_bias", "not implemented"),
        ({"modalities": ["text", "audio"]}, "modalities", "not implemented"),
        ({"best_off": 3}, "best_off", "unknown field"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"stop": [""]}, "stop", "none empty"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"usage": 1}}, "stream_options", "unknown: usage"),
        (
            {"stream": True, "stream_options": {"include_usage": "yes"}},
            "stream_options",
            "include_usage: expected boolean",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "expected one of none, minimal"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema: expected"),
        ({"guided_choice": [1]}, "guided_choice", "at least one text"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex", "follows one of them"),
    ],
)
def test_a_wrong_field_is_named(
    served: Served, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = served.post({"messages": HELLO, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "the list is empty"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": ["user"], "content": "4"}]}, "unknown role"),
        ({"messages": [{"role": "user"}]}, "content: expected text"),
        ({"messages": [{"role": "user", "content": "x " * 400}]}, "the engine takes prompts"),
        ({"messages": [{"role": "user", "content": "x" * 90_000}]}, "characters of text"),
        ({"guided_regex": "("}, "regex"),
        ({"guided_grammar": "start: nothing"}, "grammar"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}}, ""),
        (image("/etc/passwd"), "files are not read here"),
        (image("file:///etc/passwd"), "addresses are not fetched"),
        (image("http://127.0.0.1/x.png"), "http addresses are not fetched"),
        (image("ftp://example.org/x.png"), "addresses are not fetched"),
        (image("data:image/png;base64,AAAA"), "no image of a known format"),
        (image("data:image/png,AAAA"), "expected data:image"),
        (image(PIXEL[:-32]), "broken"),
        (image({"url": 3}), "expected text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "unknown type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}
                ]
            },
            "files are not read here",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": [PIXEL] * 3}]}]},
            "3 images are over the server's limit of 2",
        ),
    ],
)
def test_what_cannot_be_answered_is_a_400_with_the_reason(
    served: Served, fields: dict[str, Any], words: str
) -> None:
    answer = served.post({"messages": HELLO, **fields})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"messages": [], "\xed\xa0\x80": 1}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        '{"messages": [{"role": "user", "content": "a"}]}'.encode("utf-16"),
        '{"messages": [{"role": "user", "content": "a"}]}'.encode("utf-32-le"),
        b'\xef\xbb\xbf{"messages": []}',
        b'{"messages": NaN}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 50_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_malformed_body_is_a_400(served: Served, body: bytes) -> None:
    answer = post_raw(served, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_json"


def test_a_prompt_that_does_not_fit_has_the_code_that_clients_look_for(served: Served) -> None:
    error = served.post({"messages": text_message("x " * 400)}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    "messages",
    [
        [{}] * 400,
        [{"role": "user", "content": ""}] * 400,
        [{"role": "user", "content": [{"type": "text", "text": ""}] * 400}],
        [{"role": "user", "content": [{"type": "video", "video": [PIXEL[:9]] * 400}]}],
    ],
)
def test_more_messages_and_parts_than_tokens_fit_are_refused_unread(
    served: Served, messages: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "parse_messages", lambda *words, **more: pytest.fail("read"))
    answer = served.post({"messages": messages})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "messages and parts cannot fit; no more than" in error["message"]


@pytest.mark.parametrize("depth", [100, 400, 700, 990, 1500, 2200])
def test_a_schema_of_any_depth_is_taken_or_refused(served: Served, depth: int) -> None:
    part = '{"type": "object", "properties": {"a": '
    schema = part * depth + "{}" + "}}" * depth
    format_ = f'{{"type": "json_schema", "json_schema": {{"schema": {schema}}}}}'
    text = f'{{"messages": {json.dumps(HELLO)}, "max_tokens": 1, "response_format": {format_}}}'
    assert len(text) < 100_000, "else it is refused for its size"
    answer = post_raw(served, text.encode())
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or "not JSON" not in answer.text or "recursion" in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "((a{1000}){1000}){1000}"},
        {"guided_grammar": "start: start start"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"$ref": "file:///etc/passwd"}},
            }
        },
    ],
)
def test_a_constraint_that_no_answer_can_follow_never_reaches_the_engine(
    served: Served, fields: dict[str, Any]
) -> None:
    before = served.stats.submitted
    assert served.post({"messages": HELLO, **fields}).status_code == 400
    assert served.stats.submitted == before


def test_all_problems_are_named_at_once(served: Served) -> None:
    message = served.post({"messages": HELLO, "n": 3, "top_p": 7, "huh": 1}).json()["error"]
    assert message["message"].startswith("request: 3 problems: n: ")
    assert "top_p: " in message["message"]
    assert "huh: unknown field" in message["message"]


def test_fields_that_change_nothing_are_taken(served: Served) -> None:
    harmless = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "n": 1, "tools": [], "logit_bias": {},
        "frequency_penalty": 0.0, "presence_penalty": 0, "tool_choice": "none", "top_p": None,
        "prompt_cache_options": {"ttl": "30m"}, "verbosity": "medium", "audio": None,
        "modalities": ["text"], "service_tier": "auto", "stop": None, "logprobs": False,
    }  # fmt: skip
    assert served.post({"messages": HELLO, "max_tokens": 1, **harmless}).status_code == 200


def test_a_character_beyond_the_plane_is_taken_as_an_escape_pair(served: Served) -> None:
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    assert post_raw(served, body).status_code == 200


def test_another_model_is_a_404(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="use nano or nano-2") as caught:
        served.client().chat.completions.create(model="gpt-4o", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_an_oversized_body_is_refused_by_its_length_and_while_it_comes(served: Served) -> None:
    big = json.dumps({"messages": text_message("x" * 100_000)}).encode()
    assert post_raw(served, big).status_code == 413

    def in_parts() -> Iterator[bytes]:
        yield from (b" " * 30_000 for _ in range(4))

    answer = httpx2.post(
        f"{served.url}{CHAT}",
        content=in_parts(),
        headers={"content-type": "application/json"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_client_that_is_still_sending_sees_why_its_body_is_refused(served: Served) -> None:
    size = 40_000_000
    for _ in range(3):
        with connect(served) as client:
            client.sendall(head_of(size) + bytes(size))
            answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()


def test_a_client_that_goes_on_sending_is_not_listened_to_for_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "_LINGER_S", 0.2)
    with connect(served) as client:
        client.sendall(head_of(1 << 40))
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert client.recv(65536) == b"", "closed by the server"


def test_another_content_type_is_a_415(served: Served) -> None:
    body = json.dumps({"messages": HELLO}).encode()
    assert post_raw(served, body, "text/plain").status_code == 415
    assert post_raw(served, body, "application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page.html", 404),
        ("GET", "/health/live/", 404),
        ("POST", f"{CHAT}/", 404),
    ],
)
def test_other_paths_and_methods_are_refused_in_the_same_form(
    served: Served, method: str, path: str, status: int
) -> None:
    answer = httpx2.request(method, f"{served.url}{path}", timeout=PATIENCE_S)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_refusal_tells_no_traceback_and_has_an_id(served: Served) -> None:
    answer = served.post({}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert "Traceback" not in answer.text
    made = served.post({}, headers={"x-request-id": "two words\u00e9".encode("latin-1")})
    assert len(made.headers["x-request-id"]) == 32
