"""`run` and `chat`: what is printed where, which values reach the model, what is remembered."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from commands import answering
from commands.chat import Chat
from runtime.generation.channels import Piece
from runtime.generation.releases import THINKING_2506
from runtime.generation.sampling import Sampling
from runtime.generation.stopping import GenerationLimits
from runtime.prompt.messages import Message, Text
from runtime.session import Session

from .conftest import Tool

THOUGHTFUL = [
    Piece(text="hm\n", channel="thinking"),
    Piece(text="a [bold]", channel="thinking"),
    Piece(text=" cat\x1b[2J", channel="answer"),
    Piece(text=".", channel="answer"),
]


class FakeSession:
    """Says the same pieces to every prompt, and remembers the prompts."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.release = THINKING_2506
        self.prompts: list[tuple[Message, ...]] = []
        self.encoder = SimpleNamespace(encode=self.encode)

    def encode(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        self.prompts.append(messages)
        return messages

    def request(
        self,
        prompt: object,
        sampling: Sampling | None = None,
        limits: GenerationLimits | None = None,
    ) -> SimpleNamespace:
        default = GenerationLimits(max_new_tokens=self.release.max_new_tokens)
        return SimpleNamespace(
            sampling=sampling or self.release.sampling, limits=limits or default, result=None
        )

    def stream(self, request: object) -> Iterator[Piece]:
        yield from self.pieces


def make_session(pieces: list[Piece] = THOUGHTFUL) -> tuple[FakeSession, Session]:
    fake = FakeSession(pieces)
    return fake, cast(Session, fake)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red [1].png"
    Image.new("RGB", (60, 40), (250, 0, 0)).save(path)
    return path


def test_run_prints_the_answer_and_nothing_else(tool: Tool, artifact: Path, picture: Path) -> None:
    words = ["run", artifact, "hello", "--image", picture, "--max-new-tokens", "12"]
    printed = tool(*words)
    assert (printed.status, printed.stderr) == (0, "")
    result = json.loads(tool(*words, "--json").stdout)
    assert printed.stdout.removesuffix("\n") == result["text"].removesuffix("\n")
    assert result["finish_reason"] == "length"
    assert result["usage"]["new_tokens"] == len(result["ids"]) == 12
    assert result["usage"]["image_tokens"] > 0
    assert "logprobs" not in result


def test_run_reports_the_log_probability_of_every_token(tool: Tool, artifact: Path) -> None:
    words = ["run", artifact, "hello", "--max-new-tokens", "5", "--logprobs", "3", "--json"]
    result = json.loads(tool(*words).stdout)
    assert [token["id"] for token in result["logprobs"]] == result["ids"]
    for token in result["logprobs"]:  # greedy: the chosen token is the best
        assert token["top"][0] == {"id": token["id"], "logprob": token["logprob"]}
        values = [best["logprob"] for best in token["top"]]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3


def test_a_prompt_from_stdin_is_the_same_prompt(
    tool: Tool, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--max-new-tokens", "4", "--json"]
    given = json.loads(tool("run", artifact, "what is\nthis?", *words).stdout)
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is\nthis?\n"))
    read = json.loads(tool("run", artifact, "-", *words).stdout)
    assert (read["ids"], read["usage"]) == (given["ids"], given["usage"])


def test_stdin_that_is_not_text_is_a_named_error(
    tool: Tool, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for errors in ("strict", "surrogateescape"):  # the latter in the locales C and POSIX
        stdin = io.TextIOWrapper(io.BytesIO(b"\x89PNG\xff"), encoding="utf-8", errors=errors)
        monkeypatch.setattr(sys, "stdin", stdin)
        done = tool("run", artifact, "-")
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr == "error: standard input: not UTF-8 text\n"


def test_an_empty_path_of_an_image_names_the_flag(tool: Tool, artifact: Path) -> None:
    done = tool("run", artifact, "hi", "--image", "")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == "error: --image: expected the path of an image, found an empty one\n"


def test_equal_seeds_answer_equally_and_others_do_not(tool: Tool, artifact: Path) -> None:
    def ids(seed: str) -> list[int]:
        flags = ["--temperature", "2", "--max-new-tokens", "16", "--seed", seed, "--json"]
        found: list[int] = json.loads(tool("run", artifact, "hello", *flags).stdout)["ids"]
        return found

    assert ids("1") == ids("1")
    assert ids("1") != ids("2")


def test_filters_that_do_nothing_are_named(tool: Tool, artifact: Path) -> None:
    words = ["run", artifact, "hello", "--top-k", "5", "--min-p", "0.1", "--max-new-tokens", "1"]
    greedy = tool(*words)
    assert greedy.stderr == (
        "note: --top-k, --min-p without effect at temperature 0; give --temperature\n"
    )
    assert tool(*words, "--temperature", "0.5").stderr == ""
    assert tool(*words, "--release", "thinking").stderr == ""


def test_only_what_is_given_replaces_the_values_of_the_release() -> None:
    given: dict[str, Any] = {"temperature": None, "top_p": 0.5, "seed": 3}
    wishes = answering.Wishes.of_flags(given, {"max_new_tokens": None, "stop": ("x",)})
    _, session = make_session()
    request = wishes.request(session, cast(Any, ()))
    assert request.sampling == Sampling(temperature=0.8, top_p=0.5, seed=3)
    assert request.limits == GenerationLimits(max_new_tokens=32768, stop=("x",))


@pytest.mark.parametrize(
    ("show_thinking", "printed"),
    [(False, " cat\x1b[2J.\n"), (True, "hm\na [bold]\n cat\x1b[2J.\n")],
)
def test_a_pipe_gets_the_text_as_it_is(
    capsys: pytest.CaptureFixture[str], *, show_thinking: bool, printed: str
) -> None:
    answer = answering.Answer()
    _, session = make_session()
    answering.print_stream(session, cast(Any, None), answer, show_thinking=show_thinking)
    assert capsys.readouterr() == (printed, "")
    assert (answer.thinking, answer.text) == ("hm\na [bold]", " cat\x1b[2J.")


def test_a_terminal_gets_dimmed_thinking_and_no_control_codes_of_the_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, session = make_session()
    answering.print_stream(session, cast(Any, None), answering.Answer(), show_thinking=True)
    printed = capsys.readouterr().out
    assert "\x1b[2ma [bold]\x1b[0m" in printed
    assert printed.endswith("\n cat\N{REPLACEMENT CHARACTER}[2J.\n")


def chat_lines(session: Session, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    Chat(session, answering.Wishes(sampling={}, limits={}), "Be brief.", show_thinking=False).loop()


def texts(messages: tuple[Message, ...]) -> list[str]:
    return [part.text for message in messages for part in message.parts if isinstance(part, Text)]


def test_chat_remembers_answers_without_their_thinking(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, session = make_session()
    chat_lines(session, ["one", "", "two", "/reset", "three", "/exit", "four"], monkeypatch)
    assert [texts(prompt) for prompt in fake.prompts] == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "cat\x1b[2J.", "two"],
        ["Be brief.", "three"],
    ]
    captured = capsys.readouterr()
    assert captured.out == " cat\x1b[2J.\n" * 3
    assert captured.err == "a new conversation\n"


def test_chat_attaches_images_to_the_next_message_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, picture: Path
) -> None:
    fake, session = make_session()
    lines = [f"/image {picture}", f"/image {picture}", "both?", "and now?"]
    chat_lines(session, lines, monkeypatch)
    counts = [[len(message.parts) for message in prompt] for prompt in fake.prompts]
    assert counts == [[1, 3], [1, 3, 1, 1]]
    assert capsys.readouterr().err.splitlines()[-1] == "2 attached to the next message"


def test_an_error_is_one_line_and_the_chat_goes_on(
    tool: Tool, artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["/image missing.png", "/what", "/image", "word " * 3000, "hello", "/help"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    done = tool("chat", artifact, "--max-new-tokens", "4")
    alone = tool("run", artifact, "hello", "--max-new-tokens", "4")
    assert (done.status, done.stdout) == (0, alone.stdout)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [
        " missing.png",
        " /what",
        " /image",
        " prompt",
    ]
    assert "/reset       begin a new conversation" in done.stderr
