import re

import pytest

from runtime.generation.channels import ChannelSplitter, Piece
from tests.runtime.cuts import cuttings

# Text, thinking, answer; written out by hand.
CASES = [
    ("", "", ""),
    ("plain answer", "", "plain answer"),
    ("◁think▷why◁/think▷because", "why", "because"),
    ("◁think▷◁/think▷", "", ""),
    ("◁think▷never closed", "never closed", ""),
    ("◁think▷cut in the marker◁/thin", "cut in the marker◁/thin", ""),
    ("◁thin", "", "◁thin"),
    ("◁thinking▷ is no marker", "", "◁thinking▷ is no marker"),
    (" \n◁think▷a◁/think▷\n b \n", " \na", "\n b \n"),
    (" \n ", "", " \n "),
    (" \n x", "", " \n x"),
    (" ◁thin x", "", " ◁thin x"),
    ("x◁think▷a◁/think▷b", "", "x◁think▷a◁/think▷b"),
    ("◁/think▷b", "", "◁/think▷b"),
    ("◁think▷a◁think▷b◁/think▷c", "a◁think▷b", "c"),
    ("◁think▷a◁/think▷b◁/think▷c◁think▷d", "a", "b◁/think▷c◁think▷d"),
    ("◁think▷◁◁/◁/think▷◁/think▷", "◁◁/", "◁/think▷"),
    ("◁think▷ ◁/think ▷◁/think▷ ", " ◁/think ▷", " "),
    ("◁◁think▷a", "", "◁◁think▷a"),
]


def split(pieces: list[str]) -> list[Piece]:
    splitter = ChannelSplitter()
    found = [piece for text in pieces for piece in splitter.push(text)]
    return found + splitter.flush()


def joined(pieces: list[Piece], channel: str) -> str:
    return "".join(piece.text for piece in pieces if piece.channel == channel)


@pytest.mark.parametrize(("text", "thinking", "answer"), CASES)
def test_any_cutting_of_a_text_gives_the_same_channels(
    text: str, thinking: str, answer: str
) -> None:
    for cutting in cuttings(text):
        pieces = split(cutting)
        assert (joined(pieces, "thinking"), joined(pieces, "answer")) == (thinking, answer)
        assert all(piece.text for piece in pieces)


@pytest.mark.parametrize(("text", "thinking", "answer"), CASES)
def test_only_the_markers_are_taken_out(text: str, thinking: str, answer: str) -> None:
    opened = re.fullmatch(r"(\s*)◁think▷(.*?)(?:◁/think▷(.*))?", text, flags=re.DOTALL)
    if opened and "◁/think▷" in text:
        assert opened[1] + opened[2] == thinking
        assert opened[3] == answer
    else:
        assert thinking + answer == text.replace("◁think▷", "", 1 if opened else 0)


def test_text_is_held_back_only_while_a_marker_may_be_forming() -> None:
    splitter = ChannelSplitter()
    assert splitter.push(" ◁th") == []
    assert splitter.is_holding
    assert [piece.text for piece in splitter.push("ink▷abc")] == [" abc"]
    assert not splitter.is_holding
    assert [piece.text for piece in splitter.push("d◁/t")] == ["d"]
    assert [piece.text for piece in splitter.push("◁")] == ["◁/t"]
    assert [piece.text for piece in splitter.push("/think▷x◁")] == ["x◁"]
    assert splitter.flush() == []


def test_an_answer_is_released_at_once() -> None:
    splitter = ChannelSplitter()
    released = [
        [piece.text for piece in splitter.push(text)] for text in ("a", "◁", "/think▷", " ")
    ]
    assert released == [["a"], ["◁"], ["/think▷"], [" "]]


def test_the_channel_is_that_of_the_next_text() -> None:
    splitter = ChannelSplitter()
    seen = []
    for character in "◁think▷a◁/think▷b":
        splitter.push(character)
        seen.append(splitter.channel)
    # ◁think▷ is complete at its 7th character, ◁/think▷ 9 characters later.
    assert seen == ["answer"] * 6 + ["thinking"] * 9 + ["answer"] * 2
