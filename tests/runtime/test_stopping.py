from typing import Any

import pytest

from runtime.errors import InputError
from runtime.generation.stopping import GenerationLimits, StopStrings, forming_length
from tests.runtime.cuts import cuttings

# Text, stop strings, what is released, whether one was found; written out by hand.
CASES = [
    ("", ("x",), "", False),
    ("no stop here", (), "no stop here", False),
    ("no stop here", ("STOP",), "no stop here", False),
    ("one STOP two", ("STOP",), "one ", True),
    ("STOP", ("STOP",), "", True),
    ("one STO", ("STOP",), "one STO", False),
    ("aab", ("ab",), "a", True),
    ("ababac", ("abac",), "ab", True),
    ("a\n\nb\n\n\nc", ("\n\n\n",), "a\n\nb", True),
    ("x###y", ("END", "##", "###"), "x", True),
    ("abcd", ("abcd", "bc"), "a", True),  # "bc" is complete first
    ("abcd", ("bcd", "abcd"), "", True),  # they end together: the longer one
    ("abce", ("abcd", "bc"), "a", True),
    ("abxabcd", ("abcd", "zz"), "abx", True),
    ("Grüße 北京!", ("北京",), "Grüße ", True),
]


@pytest.mark.parametrize(("text", "strings", "released", "is_found"), CASES)
def test_any_cutting_of_a_text_stops_at_the_same_place(
    text: str, strings: tuple[str, ...], released: str, is_found: bool
) -> None:
    for cutting in cuttings(text):
        stops = StopStrings(strings)
        found = "".join(stops.push(piece) for piece in cutting) + stops.flush()
        assert (found, stops.is_found) == (released, is_found)


def test_text_is_held_back_only_while_a_stop_string_may_be_forming() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert [stops.push(text) for text in ("aE", "N", "x", "E", "\n", "b")] == [
        *("a", "", "ENx", "", "E", "\nb")
    ]


def test_nothing_is_released_behind_a_stop_string() -> None:
    stops = StopStrings(["."])
    assert [stops.push("a.b"), stops.push("c"), stops.flush()] == ["a", "", ""]


def test_held_text_is_flushed_once() -> None:
    stops = StopStrings(["END"])
    assert [stops.push("EN"), stops.flush(), stops.flush()] == ["", "EN", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty stop string"):
        StopStrings(["a", ""])


@pytest.mark.parametrize(
    ("text", "length"), [("", 0), ("xab", 2), ("xabc", 0), ("abcab", 2), ("xd", 1), ("dabce", 0)]
)
def test_the_forming_length_is_that_of_the_longest_beginning(text: str, length: int) -> None:
    assert forming_length(text, ("abc", "de")) == length


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer of at least 1, found 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: .* found 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens: .* found True"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens: expected an integer of at least 0"),
        ({"stop": ("a", "")}, "stop: expected a tuple of strings, none empty"),
        ({"stop": "abc"}, "stop: .* found 'abc'"),
        ({"max_new_tokens": 0, "stop": "a"}, "2 problems: max_new_tokens.*; stop"),
    ],
)
def test_a_limit_outside_its_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerationLimits(**values)
