"""Answers that follow a grammar, whatever the model would rather say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.generation.answer_gate import AnswerRules
from runtime.generation.constraint import ConstraintError
from runtime.generation.generate import generate
from runtime.generation.grammar import GrammarCompiler, LlGrammar
from runtime.generation.request import Request
from runtime.generation.sampling import Sampling
from runtime.generation.stopping import GenerationLimits
from runtime.prompt.special_tokens import THINK_END, THINK_START
from runtime.prompt.tokenizer import Tokenizer
from tests.runtime.byte_model import (
    END,
    EOS,
    PROMPT,
    TOKENIZER,
    VOCAB,
    make_engine,
    result_of,
    text_of,
)
from tests.runtime.fake_engine import FakeEngine, make_limits

pytest.importorskip("llguidance")

STOP_IDS = frozenset({END, EOS})
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "sum": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["add", "sub"]},
    },
    "required": ["name", "sum", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, STOP_IDS)


def random_engine(seed: int, *, likes: str = "") -> FakeEngine:
    """A model that says anything, and some bytes more often than others."""
    table = np.random.default_rng(seed).standard_normal((512, VOCAB)).astype(np.float32)
    table[:, list(likes.encode())] += 3
    return FakeEngine(table, make_limits(max_tokens=512))


def say(
    engine: FakeEngine,
    grammar: LlGrammar,
    sampling: Sampling | None = None,
    limits: GenerationLimits | None = None,
) -> tuple[str, str, Request]:
    request = Request(PROMPT, stop_ids=STOP_IDS, sampling=sampling, limits=limits, grammar=grammar)
    pieces = list(generate(engine, TOKENIZER, request))
    return text_of(pieces), text_of(pieces, "thinking"), request


@pytest.mark.parametrize("seed", range(12))
def test_an_answer_under_a_schema_parses_and_fits_it_however_it_is_drawn(
    compiler: GrammarCompiler, seed: int
) -> None:
    grammar = compiler.from_json_schema(SCHEMA)
    sampling = Sampling(temperature=1.5, seed=seed, repetition_penalty=1.0 + 0.1 * (seed % 3))
    text, _, request = say(random_engine(seed), grammar, sampling)
    assert result_of(request).finish_reason == "stop"
    found = json.loads(text)
    assert set(found) == {"name", "sum", "kind"}
    assert len(found["name"]) <= 5
    assert 0 <= found["sum"] <= 99
    assert found["kind"] in {"add", "sub"}


@pytest.mark.parametrize("seed", range(6))
def test_a_greedy_answer_under_a_regex_matches_it(compiler: GrammarCompiler, seed: int) -> None:
    pattern = r"[a-c]{2,5}-(x|yy)[0-9]?"
    text, _, request = say(random_engine(seed), compiler.from_regex(pattern))
    assert re.fullmatch(pattern, text)
    assert result_of(request).finish_reason == "stop"


def test_an_answer_under_a_grammar_follows_it(compiler: GrammarCompiler) -> None:
    grammar = compiler.from_lark('start: ("(" start ")") | "x"')
    text, _, _ = say(random_engine(1, likes="("), grammar, Sampling(temperature=1.0, seed=3))
    depth = text.count("(")
    assert text == "(" * depth + "x" + ")" * depth


def test_what_would_be_said_anyway_is_not_changed(compiler: GrammarCompiler) -> None:
    script = [*b"ab-x7", END]
    text, _, request = say(make_engine(script, len(PROMPT)), compiler.from_regex("[a-c]+-x[0-9]"))
    assert (text, result_of(request).ids) == ("ab-x7", tuple(script))


def steered_engine(script: str, *, then: str) -> FakeEngine:
    """Says a script, then prefers some bytes; every id is possible everywhere."""
    table = np.random.default_rng(0).standard_normal((512, VOCAB)).astype(np.float32)
    table[:, list(then.encode())] += 5
    for index, token_id in enumerate(script.encode()):
        table[len(PROMPT) - 1 + index, token_id] = 50
    return FakeEngine(table, make_limits(max_tokens=512))


def test_thinking_is_free_and_the_answer_behind_it_is_not(compiler: GrammarCompiler) -> None:
    thought = 'So {"sum": nine} wäre 北?\n'
    engine = steered_engine(f"{THINK_START}{thought}{THINK_END}hello", then="}")
    text, thinking, request = say(engine, compiler.from_json_schema(SCHEMA))
    assert thinking == thought
    assert set(json.loads(text)) == {"name", "sum", "kind"}
    assert result_of(request).finish_reason == "stop"


def test_thinking_has_to_be_closed_before_the_answer_ends(compiler: GrammarCompiler) -> None:
    table = np.zeros((512, VOCAB), dtype=np.float32)
    script = f"{THINK_START}hm".encode()
    for index, token_id in enumerate(script):
        table[len(PROMPT) - 1 + index, token_id] = 50
    table[len(PROMPT) - 1 + len(script) :, END] = 50  # wants to stop while it thinks
    engine = FakeEngine(table, make_limits(max_tokens=512))
    limits = GenerationLimits(max_thinking_tokens=6)
    text, thinking, request = say(engine, compiler.from_regex("yes|no"), limits=limits)
    assert thinking.startswith("hm")
    assert text in {"yes", "no"}
    assert result_of(request).finish_reason == "stop"


def test_an_answer_that_only_begins_like_the_marker_is_held_to_its_grammar(
    compiler: GrammarCompiler,
) -> None:
    engine = steered_engine("◁th", then="x")
    text, thinking, _ = say(engine, compiler.from_regex("◁th[x-z]{3}"))
    assert (text, thinking) == ("◁thxxx", "")


def test_an_answer_cut_by_its_budget_says_so(compiler: GrammarCompiler) -> None:
    grammar = compiler.from_json_schema({"type": "string"})
    limits = GenerationLimits(max_new_tokens=20)
    text, _, request = say(steered_engine('"', then="abc"), grammar, limits=limits)
    assert result_of(request).finish_reason == "length"
    with pytest.raises(ValueError, match="Unterminated string"):
        json.loads(text)


def test_white_space_between_the_parts_of_json_has_an_end(compiler: GrammarCompiler) -> None:
    engine = steered_engine("{", then=" \n")
    text, _, request = say(engine, compiler.from_json_schema(SCHEMA))
    assert result_of(request).finish_reason == "stop"
    assert len(text) < 300
    json.loads(text)


def test_a_grammar_that_names_special_tokens_gets_none_but_the_end(
    compiler: GrammarCompiler,
) -> None:
    grammar = compiler.from_lark('start: <[257]> "a" | "b"')  # 257 is the placeholder of images
    text, _, request = say(random_engine(2), grammar)
    assert (text, result_of(request).ids[:-1]) == ("b", (ord("b"),))
    only = compiler.from_lark('start: "b" <[257]>')
    with pytest.raises(ConstraintError, match="allows no token"):
        say(random_engine(2), only)


def test_one_grammar_serves_answers_side_by_side(compiler: GrammarCompiler) -> None:
    grammar = compiler.from_regex("ab|cd")
    first, second = grammar.start(), grammar.start()
    first.accept(ord("a"))
    assert np.flatnonzero(first.allowed(0)).tolist() == [ord("b")]
    assert {ord("a"), ord("c")} <= set(np.flatnonzero(second.allowed(0)).tolist())


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objec"}, "Invalid type: objec"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"type": "array", "uniqueItems": True}, "Unimplemented keys: .*uniqueItems"),
        ({"type": "string", "format": "shoe-size"}, "Unknown format: shoe-size"),
        ({"$ref": "https://example.org/schema"}, "does not fetch"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_before_anything_runs(
    compiler: GrammarCompiler, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"JSON schema: .*{message}"):
        compiler.from_json_schema(schema)


@pytest.mark.parametrize("depth", [200, 3000])
def test_a_schema_that_is_nested_too_deeply_is_refused_by_name(
    compiler: GrammarCompiler, depth: int
) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InputError, match=r"JSON schema: .*recursion"):
        compiler.from_json_schema(schema)


def test_a_schema_is_an_object(compiler: GrammarCompiler) -> None:
    with pytest.raises(InputError, match="expected an object, found list"):
        compiler.from_json_schema([1])  # type: ignore[arg-type]  # what a sender may send


def test_a_model_that_does_not_want_to_think_is_not_led_to_it(compiler: GrammarCompiler) -> None:
    table = np.zeros((512, VOCAB), dtype=np.float32)
    table[:, ord("S")] = 9  # "Sure, ..."
    table[:, list("◁".encode())] = 5
    text, thinking, _ = say(
        FakeEngine(table, make_limits(max_tokens=512)), compiler.from_regex("[a-c]{3}")
    )
    assert (text, thinking) == ("aaa", "")


def test_a_mistake_of_the_library_is_told_without_its_backtrace(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = SimpleNamespace(
        is_error=lambda: True, get_error=lambda: "panic: too much\n<backtrace>\n0: lib/x.rs"
    )
    library = SimpleNamespace(LLMatcher=lambda *words, **more: matcher)
    monkeypatch.setattr(compiler, "_library", library)
    with pytest.raises(InputError, match=r"\Agrammar: panic: too much\Z"):
        compiler._compile("grammar", "")


def test_patterns_and_grammars_that_cannot_be_understood_are_refused(
    compiler: GrammarCompiler,
) -> None:
    with pytest.raises(InputError, match=r"regex: .*unclosed group"):
        compiler.from_regex("a(b")
    with pytest.raises(InputError, match=r'grammar: .*unknown name: "foo"'):
        compiler.from_lark("start: foo")


def wide_tokenizer() -> Tokenizer:
    """A vocabulary with tokens that hold pieces of markers and more."""
    singles = [bytes([value]) for value in range(256)]
    wider = ["◁", "▷", "think", "◁think", "▷\n", "▷{", "think▷", f"{THINK_END}{{", f"a{THINK_END}"]
    ranks = {token: rank for rank, token in enumerate([*singles, *map(str.encode, wider)])}
    return Tokenizer(ranks, {"<|im_end|>": len(ranks)})


def ids_in(tokenizer: Tokenizer, mask: NDArray[np.bool_]) -> Iterator[bytes]:
    for token_id in np.flatnonzero(mask).tolist():
        yield tokenizer.decode_bytes([token_id])


def test_a_token_that_ends_the_thinking_and_begins_the_answer_is_not_allowed() -> None:
    tokenizer = wide_tokenizer()
    rules = AnswerRules(tokenizer, frozenset({tokenizer.vocab_size - 1}))

    def forbidden(tail: str) -> set[bytes]:
        return set(ids_in(tokenizer, ~rules.thinking(tail.encode()) & rules.text))

    whole = f"{THINK_END}{{".encode()
    assert forbidden("some text") == {whole}
    assert forbidden("◁think") == {whole}
    assert forbidden("text◁/think") == {whole, "▷\n".encode(), "▷{".encode()}


def test_the_opening_marker_may_be_made_of_any_tokens_that_fit() -> None:
    tokenizer = wide_tokenizer()
    rules = AnswerRules(tokenizer, frozenset({tokenizer.vocab_size - 1}))

    def opening(done: str) -> set[bytes]:
        return {tokenizer.decode_bytes([one]) for one in rules.opening(done.encode())}

    assert opening("") == {"◁".encode()[:1], "◁".encode(), "◁think".encode()}
    assert opening("◁") == {b"t", b"think", "think▷".encode()}
    assert opening("◁think") == {"▷".encode()[:1], "▷".encode()}


def test_a_real_vocabulary_answers_under_a_schema() -> None:
    folder = Path(__file__).parents[2] / "examples" / "nano" / "checkpoint"
    tokenizer = Tokenizer.load(folder)
    stop_id = tokenizer.special_id("<|im_end|>")
    assert stop_id is not None
    grammar = GrammarCompiler(tokenizer, frozenset({stop_id})).from_json_schema(SCHEMA)
    table = np.random.default_rng(0).standard_normal((512, tokenizer.vocab_size))
    for seed in range(4):
        engine = FakeEngine(table.astype(np.float32), make_limits(max_tokens=512))
        sampling = Sampling(temperature=1.5, seed=seed)
        request = Request(PROMPT, stop_ids=frozenset({stop_id}), sampling=sampling, grammar=grammar)
        pieces = list(generate(engine, tokenizer, request))
        assert set(json.loads(text_of(pieces))) == {"name", "sum", "kind"}
