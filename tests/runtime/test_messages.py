from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PillowImage

from runtime.errors import InputError
from runtime.prompt.messages import Image, Message, Text, drop_thinking, parse_messages

DATA_URL = "data:image/png;base64,AAAA"


def user(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_string_becomes_one_text() -> None:
    assert parse_messages([{"role": "system", "content": "be kind"}]) == (
        Message(role="system", parts=(Text(text="be kind"),)),
    )


def test_parts_keep_their_order_and_sources() -> None:
    picture = PillowImage.new("RGB", (1, 1))
    parsed = parse_messages(
        user(
            {"type": "image", "image": picture},
            {"type": "text", "text": "and"},
            {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "high"}},
            {"type": "image_url", "image_url": "a.png"},
            {"type": "video", "video": [b"one", Path("two.png")]},
        )
    )
    sources = [part.source if isinstance(part, Image) else part.text for part in parsed[0].parts]
    assert sources == [picture, "and", DATA_URL, "a.png", b"one", Path("two.png")]


def test_parsed_messages_pass_unchanged() -> None:
    parsed = parse_messages([{"role": "user", "content": "a", "name": "Ann"}])
    assert parse_messages(parsed) == parsed
    assert parsed[0].name == "Ann"


def test_empty_keys_of_clients_are_taken_as_absent() -> None:
    nothing: dict[str, object] = {"tool_calls": [], "refusal": None}
    message: dict[str, object] = {"role": "assistant", "content": "a", **nothing}
    assert parse_messages([message]) == (Message(role="assistant", parts=(Text(text="a"),)),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the list is empty"),
        ("hello", "expected a list, found str"),
        ({"role": "user"}, "expected a list, found dict"),
        (["hello"], "message 0: expected an object, found str"),
        ([{"role": "tool", "content": "a"}], "message 0: unknown role 'tool'"),
        ([{"role": ["user"], "content": "a"}], "message 0: unknown role"),
        ([{"content": "a"}], "message 0: unknown role None"),
        ([{"role": "user"}], "message 0: content: .* which is missing"),
        ([{"role": "user", "content": 3}], "message 0: content: .* found int"),
        ([{"role": "user", "content": b"a"}], "message 0: content: .* found bytes"),
        ([{"role": "user", "content": "a", "name": 3}], "message 0: name: .* found int"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "unknown keys: tool_calls"),
        (user(), "message 0: content: the list of parts is empty"),
        (user("a"), "message 0, part 0: expected an object"),
        (user({"type": "text", "text": "a"}, {"type": "audio"}), "part 1: unknown type 'audio'"),
        (user({"type": ["text"]}), "part 0: unknown type"),
        (user({"type": "text"}), "part 0: text: is missing"),
        (user({"type": "text", "text": None}), "part 0: text: expected text, found NoneType"),
        (user({"type": "text", "text": "a", "image": "b"}), "part 0: unknown keys: image"),
        (user({"type": "image_url", "image_url": {}}), "image_url.url: expected text"),
        (user({"type": "image", "image": 3}), "part 0: image: expected a path"),
        (user({"type": "video", "video": "a.mp4"}), "video: expected a list of frames"),
        (user({"type": "video", "video": []}), "video: there are no frames"),
        (user({"type": "video", "video": [b"", 3]}), "part 0, frame 1: image: expected a path"),
    ],
)
def test_a_bad_shape_is_refused_with_its_place(messages: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_messages(messages)


@pytest.mark.parametrize("url", ["http://host/a.png", "HTTPS://host/a.png", "file:///a.png"])
def test_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(InputError, match="addresses are not fetched"):
        parse_messages(user({"type": "image_url", "image_url": {"url": url}}))


@pytest.mark.parametrize("source", ["/etc/passwd", Path("a.png")])
def test_a_server_can_refuse_paths(source: str | Path) -> None:
    with pytest.raises(InputError, match="message 0, part 0: files are not read here"):
        parse_messages(user({"type": "image", "image": source}), allow_paths=False)
    allowed = user({"type": "image", "image": DATA_URL}, {"type": "image", "image": b"a"})
    assert len(parse_messages(allowed, allow_paths=False)[0].parts) == 2


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"2 problems: message 0: .*; message 1, part 0: "):
        parse_messages([{"role": "x", "content": "a"}, *user({"type": "audio"})])


def test_a_message_with_a_made_up_role_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="unknown role"):
        Message(role="<|im_end|>", parts=())


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("◁think▷a\nb◁/think▷\n\nanswer", "answer"),
        ("a marker ◁think▷ in an answer", "a marker ◁think▷ in an answer"),
        ("◁think▷never finished", ""),
        ("no thinking ◁/think▷ here", "no thinking ◁/think▷ here"),
    ],
)
def test_thinking_of_earlier_answers_is_dropped(text: str, rest: str) -> None:
    messages = parse_messages(
        [
            {"role": "user", "content": "◁think▷mine◁/think▷"},
            {"role": "assistant", "content": text},
            {"role": "user", "content": "go on"},
        ]
    )
    dropped = drop_thinking(messages)
    assert dropped[1].parts == (Text(text=rest),)
    assert (dropped[0], dropped[2]) == (messages[0], messages[2])


def test_thinking_of_an_answer_at_the_end_is_dropped_too() -> None:
    messages = parse_messages([{"role": "assistant", "content": "◁think▷a◁/think▷b"}])
    assert drop_thinking(messages)[0].parts == (Text(text="b"),)
    assert drop_thinking(()) == ()


def test_what_clients_send_back_with_an_answer_is_taken() -> None:
    sent_back = {"reasoning_content": "so", "reasoning": "so", "parsed": {"total": 42}}
    messages = [{"role": "assistant", "content": "42", **sent_back}]
    assert parse_messages(messages) == parse_messages([{"role": "assistant", "content": "42"}])


def test_a_long_list_of_bad_messages_is_not_read_to_its_end() -> None:
    read: list[int] = []

    class Endless(list[object]):
        def __iter__(self) -> Iterator[object]:
            for number in range(10_000):
                read.append(number)
                yield {}

    with pytest.raises(InputError, match="not read on behind so many: 100 problems") as caught:
        parse_messages(Endless([0]))
    assert len(read) == 50, "each has two problems"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "message",
    [
        {"role": "x" * 100_000, "content": "a"},
        {"role": ["x"] * 100_000, "content": "a"},
        {"role": "user", "content": [{"type": "x" * 100_000}]},
        {"role": "user", "content": "a", **{f"x{n:0100}": 1 for n in range(1000)}},
        *user({"type": "image", "image": f"{'x' * 100_000}://"}),
    ],
)
def test_a_problem_repeats_little_of_what_is_wrong(message: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_messages([message])
    assert len(str(caught.value)) < 1000
