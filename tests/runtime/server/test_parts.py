"""Small parts alone: the buffer, the table of fields, tokens of an answer, flags."""

import asyncio
import json
import threading
from dataclasses import fields
from typing import Any

import pytest
import typer

from commands.serve import ServeFlags
from runtime.errors import CheckpointError, InputError
from runtime.generation.channels import ChannelSplitter, Piece
from runtime.generation.grammar import GrammarCompiler
from runtime.generation.sampling import Choice, TokenLogprob
from runtime.scheduling.errors import EngineFailedError, HandlingError
from runtime.scheduling.handle import End
from runtime.server import __main__ as wheel
from runtime.server.api_errors import ApiError
from runtime.server.chat_request import MAX_VALUES, ChatRequest
from runtime.server.constraints import MAX_CONSTRAINT_BYTES, Grammars, GrammarSpec
from runtime.server.event_buffer import EventBuffer
from runtime.server.flags import FLAGS
from runtime.server.openapi import openapi_document
from runtime.server.options import ServerOptions
from runtime.server.parameters import IGNORED, NEUTRAL, READ
from runtime.server.token_report import TokenReport
from tests.runtime.byte_model import END, TOKENIZER
from tests.runtime.server.test_chat import ROOT

ENDED = End(reason="stop", result=None, error=None)


def piece(number: int) -> Piece:
    return Piece(text=str(number), channel="answer")


def read(**given: object) -> ChatRequest:
    return ChatRequest.from_body(json.dumps({"messages": [], **given}).encode())


def test_events_of_another_thread_come_in_order_and_the_end_is_last() -> None:
    async def take() -> list[Any]:
        buffer = EventBuffer(max_pieces=None)

        def send() -> None:
            for number in range(500):
                buffer.listen(piece(number))
            buffer.listen(ENDED)

        thread = threading.Thread(target=send)
        thread.start()
        found = []
        while not isinstance(event := await buffer.next(5.0), End):
            assert event is not None
            found.append(event.text)
        thread.join()
        return found

    assert asyncio.run(take()) == [str(number) for number in range(500)]


def test_a_full_buffer_calls_once_keeps_what_it_has_and_still_takes_the_end() -> None:
    async def fill() -> tuple[list[str], list[Any]]:
        calls: list[str] = []
        buffer = EventBuffer(max_pieces=2)
        buffer.on_overrun = lambda: calls.append("overrun")
        for number in range(5):
            buffer.listen(piece(number))
        buffer.listen(ENDED)
        await asyncio.sleep(0)
        found = [await buffer.next(1.0) for _ in range(3)]
        assert await buffer.next(0.01) is None
        return calls, found

    calls, found = asyncio.run(fill())
    assert calls == ["overrun"]
    assert found == [piece(0), piece(1), ENDED]


def test_nothing_for_a_while_is_none() -> None:
    async def wait() -> object:
        return await EventBuffer(max_pieces=1).next(0.01)

    assert asyncio.run(wait()) is None


def test_fields_become_what_the_runtime_takes() -> None:
    request = read(
        temperature=1, top_k=-1, seed=3, max_completion_tokens=9, stop="x", logprobs=True,
        reasoning_effort="low",
    )  # fmt: skip
    assert request.sampling == {"temperature": 1.0, "top_k": 0, "seed": 3, "logprobs": 1}
    assert request.limits == {"max_new_tokens": 9, "max_thinking_tokens": 1024, "stop": ("x",)}
    assert (request.is_stream, request.top_logprobs, request.model) == (False, 0, None)
    assert read(reasoning_effort="high").limits == {"max_thinking_tokens": None}
    assert read(top_logprobs=5, logprobs=True).sampling["logprobs"] == 5


def test_null_is_absent_in_every_field() -> None:
    names = [name for name in (*READ, *IGNORED, *NEUTRAL) if name != "messages"]
    assert read(**dict.fromkeys(names)) == read()


def test_every_field_of_the_table_is_told_on_the_page_and_the_other_way_round() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    section = page.partition("## Fields")[2].partition("## Errors")[0]
    missing = [name for name in (*READ, *IGNORED) if f"`{name}" not in section]
    assert missing == []
    refused = set(NEUTRAL) - {"tool_choice", "function_call"}
    assert [name for name in refused if f"`{name}`" not in section] == []


def test_the_openapi_document_tells_the_fields_of_the_table_and_allows_no_others() -> None:
    chat = openapi_document()["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {*READ, *IGNORED, *NEUTRAL}
    assert schema["additionalProperties"] is False


def test_a_number_that_the_sampling_refuses_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"temperature: .* found inf"):
        ChatRequest.from_body(b'{"messages": [], "temperature": 1e999}')


def test_what_other_servers_take_becomes_what_it_means_there() -> None:
    assert read(top_p=0, temperature=1).sampling == {"temperature": 0.0, "logprobs": 0}
    assert read(seed=-1).sampling["seed"] == 2**64 - 1
    assert read(seed=-(2**70)).sampling["seed"] == 0
    assert read(reasoning_effort="max").limits == {"max_thinking_tokens": None}


@pytest.mark.parametrize("unit", [b"{} ", b"[] ", b'"": ', b"0,"])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(
    unit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "loads", lambda *words, **more: pytest.fail("parsed"))
    with pytest.raises(ApiError, match="more than 1,000,000 brackets, colons and commas"):
        ChatRequest.from_body(b'{"messages": [' + unit * MAX_VALUES + b"0]}")


@pytest.mark.parametrize(
    "given",
    [
        {"guided_grammar": "start: " + "x" * MAX_CONSTRAINT_BYTES},
        {"guided_regex": "é" * (MAX_CONSTRAINT_BYTES // 2 + 1)},
        {"guided_choice": ["x" * 1000] * 270},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"const": "x" * MAX_CONSTRAINT_BYTES}},
            }
        },
    ],
)
def test_a_constraint_that_is_too_long_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match=r"bytes; no more than 262,144 are compiled") as caught:
        read(**given)
    assert (caught.value.status, caught.value.param) == (400, next(iter(given)))


def test_kept_constraints_are_few_by_their_bytes_too() -> None:
    grammars = Grammars(TOKENIZER, frozenset({END}), max_kept_bytes=25)
    specs = [GrammarSpec(kind="regex", text=letter * 10) for letter in "abc"]
    kept = [grammars.compile(spec) for spec in specs]
    assert grammars.compile(specs[2]) is kept[2]
    assert grammars.compile(specs[1]) is kept[1]
    assert grammars.compile(specs[0]) is not kept[0]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (CheckpointError("/secret/model: fails"), "chat_template", "cannot say these messages"),
        (EngineFailedError("a step: OSError: /secret"), "EngineFailedError", "engine failed"),
        (HandlingError("KeyError: /secret"), "HandlingError", "failed at this request's tokens"),
    ],
)
def test_texts_of_inner_errors_are_for_the_log_alone(
    error: Exception, code: str, told: str
) -> None:
    found = ApiError.from_error(error)
    assert found.code == code
    assert told in str(found)
    assert "secret" not in json.dumps(found.body)
    assert found.cause
    assert ("secret" in found.cause) is (code != "chat_template"), "that may repeat messages"


def test_a_constraint_is_compiled_once_and_the_oldest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    original = GrammarCompiler.from_regex

    def count(self: GrammarCompiler, pattern: str) -> Any:  # noqa: ANN401  the original's
        compiled.append(pattern)
        return original(self, pattern)

    monkeypatch.setattr(GrammarCompiler, "from_regex", count)
    grammars = Grammars(TOKENIZER, frozenset({END}), num_kept=2)
    for pattern in "abaacb":
        grammars.compile(GrammarSpec(kind="regex", text=pattern))
    assert compiled == ["a", "b", "c", "b"]


def test_a_missing_library_is_told_by_the_request_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    grammars = Grammars(TOKENIZER, frozenset({END}), num_kept=2)
    with pytest.raises(Exception, match="pip install llguidance") as caught:
        grammars.compile(GrammarSpec(kind="regex", text="a"))
    assert ApiError.from_error(caught.value).status == 400


def choices_of(text: str) -> list[Choice]:
    """One token a byte, as the tokenizer of these tests has them."""
    return [
        Choice(token_id=one, logprob=-0.5, top=(TokenLogprob(one, -0.5), TokenLogprob(65, -2e6)))
        for one in TOKENIZER.encode(text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "◁think▷so◁/think▷42",
        "  ◁think▷◁think▷ x◁/think▷◁/think▷",
        "42",
        "◁thin",
        "◁think▷never closed",
        "é◁think▷é",
        "",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_reported_tokens_are_the_answer_s_wherever_the_text_is_cut(text: str, size: int) -> None:
    splitter = ChannelSplitter()
    pieces = [*splitter.push(text), *splitter.flush()]
    wanted = "".join(one.text for one in pieces if one.channel == "answer")
    report = TokenReport(TOKENIZER, frozenset({END}), 1)
    choices = [*choices_of(text), Choice(token_id=END, logprob=0.0)]
    found: list[dict[str, Any]] = []
    for start in range(0, len(choices), size):
        found += report.push(choices[start : start + size])
    found += report.flush()
    assert bytes(byte for token in found for byte in token["bytes"]).decode() == wanted
    assert all(len(token["top_logprobs"]) == 1 for token in found)


def test_a_logprob_stays_within_what_clients_expect() -> None:
    token = TokenReport(TOKENIZER, frozenset(), 2).push(choices_of("a"))[0]
    assert [top["logprob"] for top in token["top_logprobs"]] == [-0.5, -9999.0]


def test_every_option_has_one_flag_with_the_same_words_and_default_in_both_command_lines() -> None:
    names = {field.name for field in fields(ServerOptions)}
    assert set(FLAGS) == names == {field.name for field in fields(ServeFlags)}
    from_tool = ServeFlags().make_options("artifact")
    assert from_tool == ServerOptions(model_names=("artifact",))
    from_wheel = vars(wheel._make_parser().parse_args(["artifact"]))
    flags = typer.main.get_command(__import__("tool").app).commands["serve"].params  # type: ignore[attr-defined]  # typer hides its types
    told = {option: parameter.help for parameter in flags for option in parameter.opts}
    for name, flag in FLAGS.items():
        assert told[flag.name] == flag.help
        expected = getattr(from_tool, name) if not flag.is_repeated else None
        assert from_wheel[name] == expected, name


def test_flags_of_the_wheel_reach_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerOptions] = []

    def note(open_session: object, options: ServerOptions, *, announce: object) -> None:
        seen.append(options)

    monkeypatch.setattr(wheel, "serve", note)
    words = ["x/nano", "--image-host", "a", "--image-host", "b:1", "--queue-timeout", "2.5"]
    assert wheel.main([*words, "--allow-anyone"]) == 0
    assert seen == [
        ServerOptions(
            model_names=("nano",), image_hosts=("a", "b:1"), queue_timeout_s=2.5, allow_anyone=True
        )
    ]
    assert wheel.main(["x", "--host", "0.0.0.0"]) == 1
