"""JSON schemas, regular expressions and grammars in Lark's form, as constraints for answers.

The work is llguidance's; this file gives it our vocabulary and refuses what it does not do. Needs
`kimivl[serve]`.

Source: https://github.com/guidance-ai/llguidance (docs/syntax.md, docs/json_schema.md).
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsupportedError
from ..prompt.tokenizer import Tokenizer
from .answer_gate import AnswerGate, AnswerRules
from .constraint import Constraint, ConstraintError

if TYPE_CHECKING:
    from llguidance import LLMatcher

_BLANKS = r"( |\n {0,16})?"
"""Between two parts of JSON: nothing, a blank, or a new line and its indentation. Without an end a
model may write nothing else."""
_BACKTRACE = "<backtrace>"
_SHOWN = 300


class GrammarCompiler:
    """Makes grammars for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        """Read the vocabulary, which takes about a second for a large one.

        Args:
            tokenizer: of the checkpoint.
            stop_ids: ids that end an answer, those of the requests.

        Raises:
            UnsupportedError: llguidance is not installed.
        """
        try:
            import llguidance
        except ImportError as error:
            raise UnsupportedError(
                "answers that follow a grammar need llguidance: pip install llguidance"
            ) from error
        self._library = llguidance
        self._rules = AnswerRules(tokenizer, stop_ids)
        vocabulary = _Vocabulary(tokenizer, min(stop_ids))
        self._vocabulary = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary),
            n_vocab=tokenizer.vocab_size,
            eos_token=sorted(one for one in stop_ids if one < tokenizer.vocab_size),
        )

    def from_json_schema(self, schema: Mapping[str, Any]) -> "LlGrammar":
        """Compile a JSON schema; the answer is one JSON value that it describes.

        Raises:
            InputError: it is no schema, uses what is not implemented, or nothing satisfies it.
        """
        if not isinstance(schema, Mapping):
            raise InputError(f"JSON schema: expected an object, found {type(schema).__name__}")
        options = {"whitespace_pattern": _BLANKS}
        try:
            text = json.dumps(schema)
            grammar = self._library.LLMatcher.grammar_from_json_schema(text, overrides=options)
        except (TypeError, ValueError, RecursionError) as error:  # no JSON, or nested too deeply
            raise InputError(f"JSON schema: {' '.join(str(error).split())[:_SHOWN]}") from error
        return self._compile("JSON schema", grammar)

    def from_regex(self, pattern: str) -> "LlGrammar":
        """Compile a regular expression (syntax of Rust's `regex`); it matches the whole answer.

        Raises:
            InputError: it cannot be understood.
        """
        return self._compile("regex", self._library.LLMatcher.grammar_from_regex(pattern))

    def from_lark(self, text: str) -> "LlGrammar":
        """Compile a grammar in llguidance's variant of Lark's form; `start` is the whole answer.

        Raises:
            InputError: it cannot be understood.
        """
        return self._compile("grammar", self._library.LLMatcher.grammar_from_lark(text))

    def _compile(self, what: str, grammar: str) -> "LlGrammar":
        matcher = self._library.LLMatcher(self._vocabulary, grammar, log_level=0)
        problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if problems:
            listed = "; ".join(map(_shorten, problems))
            raise InputError(f"{what}: {listed}")
        return LlGrammar(matcher, self._rules)


def _shorten(problem: str) -> str:
    """Say in one line what the library says, without the backtrace of a mistake of its own."""
    return " ".join(problem.partition(_BACKTRACE)[0].split())[:_SHOWN]


class LlGrammar:
    """A compiled grammar. It may serve many answers, in any thread."""

    def __init__(self, matcher: "LLMatcher", rules: AnswerRules) -> None:
        """Keep a matcher at its beginning, which is only copied from now on."""
        self._matcher, self._rules = matcher, rules

    def start(self) -> Constraint:
        """Begin an answer, with its thinking in front."""
        size = self._rules.tokenizer.vocab_size
        return AnswerGate(self._rules, lambda: _Matching(self._matcher.deep_copy(), size))


class _Matching:
    """A matcher of llguidance behind some tokens."""

    def __init__(self, matcher: "LLMatcher", num_ids: int) -> None:
        self._matcher, self._num_ids = matcher, num_ids
        self._mask: NDArray[np.bool_] | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """Tell which ids may come next, (ids,); the same array until the next token."""
        if self._mask is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
            bits = np.unpackbits(bits, count=self._num_ids, bitorder="little")
            self._mask = bits.astype(np.bool_)
        return self._mask

    def accept(self, token_id: int) -> None:
        """Go on behind a token."""
        self._mask = None
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _shorten(self._matcher.get_error())
            raise ConstraintError(f"the answer can no longer follow its grammar: {reason}")


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.decode_bytes([one]) for one in range(tokenizer.vocab_size)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Encode text, in which names of special tokens are text."""
        return self._tokenizer.encode(text)
