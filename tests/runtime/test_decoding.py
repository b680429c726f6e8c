"""From tokens to text: stop ids, channels, stop strings, budgets, what is reported."""

import numpy as np
import pytest

from runtime.generation.decoding import Decoding
from runtime.generation.stopping import GenerationLimits
from tests.runtime.byte_model import (
    CLOSING,
    END,
    EOS,
    OPENING,
    TOKENIZER,
    VOCAB,
    answer,
    ids_of,
    make_request,
    text_of,
)


@pytest.mark.parametrize("stop_id", [END, EOS])
def test_a_stop_id_ends_the_answer_and_never_becomes_text(stop_id: int) -> None:
    pieces, result = answer("Hello", end=[stop_id])
    assert text_of(pieces) == "Hello"
    assert result.finish_reason == "stop"
    assert result.ids == (*b"Hello", stop_id)


def test_thinking_and_answer_come_in_their_channels() -> None:
    pieces, result = answer("◁think▷wäge 北◁/think▷Äh: ◁/think▷")
    assert text_of(pieces, "thinking") == "wäge 北"
    assert text_of(pieces) == "Äh: ◁/think▷"
    assert result.usage.thinking_tokens == len("wäge 北◁/think▷".encode())


def test_thinking_that_never_ends_is_all_thinking() -> None:
    pieces, result = answer("◁think▷on and on ◁/thi", GenerationLimits(max_new_tokens=30))
    assert text_of(pieces, "thinking") == "on and on ◁/thi"
    assert text_of(pieces) == ""
    assert result.finish_reason == "stop"


def test_a_character_is_shown_when_all_its_bytes_are_there() -> None:
    pieces, _ = answer("é北🙂")
    assert [piece.text for piece in pieces if piece.text] == ["é", "北", "🙂"]


def test_a_character_cut_by_the_budget_becomes_one_replacement() -> None:
    pieces, result = answer("a🙂", GenerationLimits(max_new_tokens=3))
    assert text_of(pieces) == "a\ufffd"
    assert result.ids == tuple("a🙂".encode()[:3])


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("END",), "ab ENd "),
        (("zzz", "END"), "ab ENd "),
        (("ND", "END"), "ab ENd "),
        (("ND",), "ab ENd E"),
    ],
)
def test_a_stop_string_ends_the_answer_before_itself(stop: tuple[str, ...], text: str) -> None:
    pieces, result = answer("ab ENd ENDcd", GenerationLimits(stop=stop))
    assert text_of(pieces) == text
    assert result.finish_reason == "stop"
    assert result.ids == tuple(b"ab ENd END")  # the tokens of the stop string are told


def test_a_stop_string_in_the_thinking_does_nothing() -> None:
    pieces, _ = answer("◁think▷a.b.◁/think▷c.d", GenerationLimits(stop=(".",)))
    assert (text_of(pieces, "thinking"), text_of(pieces)) == ("a.b.", "c")


def test_text_held_back_for_a_stop_string_is_released_at_the_end() -> None:
    pieces, result = answer("abEN", GenerationLimits(stop=("END",)))
    assert text_of(pieces) == "abEN"
    assert result.finish_reason == "stop"


def test_a_stop_string_that_shows_only_in_the_last_flush_is_a_stop() -> None:
    # A leading newline waits for an opening marker; only the flush hands it to the stop strings.
    pieces, result = answer("\n", GenerationLimits(stop=("\n",), max_new_tokens=1), end=[])
    assert (text_of(pieces), result.finish_reason) == ("", "stop")


@pytest.mark.parametrize(
    ("max_new_tokens", "text", "reason"), [(2, "He", "length"), (5, "Hello", "length")]
)
def test_the_budget_of_new_tokens_is_kept_exactly(
    max_new_tokens: int, text: str, reason: str
) -> None:
    pieces, result = answer("Hello", GenerationLimits(max_new_tokens=max_new_tokens))
    assert (text_of(pieces), result.finish_reason) == (text, reason)
    assert result.usage.new_tokens == max_new_tokens


def test_a_stop_id_as_the_last_token_allowed_is_a_stop() -> None:
    _, result = answer("Hello", GenerationLimits(max_new_tokens=6))
    assert result.finish_reason == "stop"


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_a_spent_thinking_budget_forces_the_closing_marker(budget: int) -> None:
    # What the model wanted to say at the places of the forced tokens is lost.
    script = "◁think▷abcde" + "-" * (len(CLOSING) - 5 + budget) + "The answer"
    pieces, result = answer(script, GenerationLimits(max_thinking_tokens=budget))
    assert text_of(pieces, "thinking") == "abcde"[:budget]
    assert text_of(pieces) == "The answer"
    assert result.ids == (*OPENING, *b"abcde"[:budget], *CLOSING, *b"The answer", END)
    assert result.usage.thinking_tokens == budget + len(CLOSING)


def test_thinking_within_its_budget_is_left_alone() -> None:
    text = "◁think▷abc◁/think▷ok"
    pieces, result = answer(text, GenerationLimits(max_thinking_tokens=100))
    assert (text_of(pieces, "thinking"), text_of(pieces)) == ("abc", "ok")
    assert result.ids == (*text.encode(), END)


@pytest.mark.parametrize("budget", range(3, 15))
def test_a_closing_marker_that_is_forming_at_the_end_of_the_budget_may_finish(budget: int) -> None:
    text = "◁think▷ab◁/think▷ok"
    pieces, result = answer(text, GenerationLimits(max_thinking_tokens=budget))
    assert (text_of(pieces, "thinking"), text_of(pieces)) == ("ab", "ok")
    assert result.ids == (*text.encode(), END)


def test_a_marker_that_breaks_off_behind_the_budget_is_closed_at_once() -> None:
    text = "◁think▷ab◁/txyz"
    pieces, result = answer(
        text + "-" * (len(CLOSING) - 2) + "ok", GenerationLimits(max_thinking_tokens=4)
    )
    assert text_of(pieces, "thinking") == "ab◁/tx"
    assert text_of(pieces) == "ok"
    assert result.finish_reason == "stop"


def test_markers_that_form_forever_do_not_escape_the_budget() -> None:
    pieces, result = answer("◁think▷" + "◁" * 60, GenerationLimits(max_thinking_tokens=5))
    assert result.usage.thinking_tokens <= 5 + 2 * len(CLOSING)
    assert text_of(pieces) != ""


def test_the_budget_of_new_tokens_counts_forced_tokens() -> None:
    limits = GenerationLimits(max_thinking_tokens=2, max_new_tokens=len(OPENING) + 4)
    pieces, result = answer("◁think▷" + "a" * 50, limits)
    assert result.finish_reason == "length"
    assert result.ids == (*OPENING, *b"aa", *CLOSING[:2])
    assert text_of(pieces) == ""


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("Hello", GenerationLimits()),
        ("é北🙂", GenerationLimits(max_new_tokens=4)),
        ("◁think▷wäge◁/think▷Äh", GenerationLimits(max_thinking_tokens=2)),
        ("ab ENDcd", GenerationLimits(stop=("END",))),
        ("END", GenerationLimits(stop=("END",))),
        ("", GenerationLimits()),
    ],
)
def test_the_ids_of_all_pieces_together_are_the_result(text: str, limits: GenerationLimits) -> None:
    pieces, result = answer(text, limits)
    assert ids_of(pieces) == result.ids
    assert all(piece.text for piece in pieces[:-1])


def test_an_id_behind_the_tokenizers_vocabulary_has_no_text() -> None:
    pieces, result = answer("", end=[ord("a"), VOCAB - 1, ord("b"), END])
    assert text_of(pieces) == "ab"
    assert result.ids == (ord("a"), VOCAB - 1, ord("b"), END)


def test_log_probabilities_are_left_out_unless_asked_for() -> None:
    pieces, _ = answer("ab")
    assert [piece.logprobs for piece in pieces] == [()] * len(pieces)


def test_usage_counts_prompt_and_new_tokens() -> None:
    _, result = answer("Hello")
    usage = result.usage
    assert (usage.prompt_tokens, usage.image_tokens, usage.new_tokens) == (10, 0, 6)
    assert usage.thinking_tokens == 0


def test_a_cancelled_request_stays_cancelled_though_the_last_flush_shows_a_stop_string() -> None:
    request = make_request(GenerationLimits(stop=("\n",)))
    state = Decoding(request, TOKENIZER, room=5)
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[ord("\n")] = 1.0
    assert state.push(logits) == []
    assert text_of(state.cancel()) == ""
    assert state.finish_reason == "cancelled"
    assert state.cancel() == []
