"""Lets a model think freely and holds its answer to a grammar.

    ◁think▷ ............ ◁/think▷ {"sum": 83} <stop>
    marker   anything     marker   grammar     only where the grammar may end

* At the beginning the model decides: if what it likes best begins the marker, the marker is allowed
  beside the grammar, else the grammar alone. A marker that nothing else can become has to be
  finished. Behind the thinking the grammar starts anew.
* While it thinks, every token of text is allowed that does not hold the end of `◁/think▷` and more
  behind it: so the answer begins with a token, and nothing of it escapes the grammar.
* No special token is ever allowed but those that end the answer, and these only where the grammar
  may end: thinking has to be closed first, and a grammar that names special tokens gets none.

It reads bytes, as `ChannelSplitter` reads text; both see the markers at the same places.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..prompt.special_tokens import THINK_END, THINK_START
from ..prompt.tokenizer import Tokenizer
from .constraint import ConstraintError

_START, _END = THINK_START.encode(), THINK_END.encode()
_Mask = NDArray[np.bool_]


class Matching(Protocol):
    """An answer's way through a grammar, without thinking."""

    def allowed(self) -> _Mask:
        """Tell which ids may come next, (ids,).

        Raises:
            ConstraintError: the grammar can no longer be followed.
        """

    def accept(self, token_id: int) -> None:
        """Go on behind a token.

        Raises:
            ConstraintError: the grammar does not allow it.
        """


class AnswerRules:
    """What a vocabulary means to the markers; made once for a tokenizer, which takes a moment."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        """Look through all tokens."""
        self.tokenizer = tokenizer
        self.text = np.ones(tokenizer.vocab_size, dtype=np.bool_)
        """Ids that are text."""
        self.text[list(tokenizer.special_ids)] = False
        self.answer = self.text.copy()
        """Ids that may be in an answer: text, and what ends it."""
        self.answer[[one for one in stop_ids if one < tokenizer.vocab_size]] = True
        tokens = {
            token_id: tokenizer.decode_bytes([token_id])
            for token_id in np.flatnonzero(self.text).tolist()
        }
        self._openings = _parts_of_start(tokens)
        self._crossings = _beyond_end(tokens)

    def opening(self, done: bytes) -> list[int]:
        """List the ids that go on with the opening marker, of which some bytes are there."""
        return self._openings[len(done)]

    def thinking(self, tail: bytes) -> _Mask:
        """Tell which ids may follow thinking that ends with `tail`."""
        mask = self.text.copy()
        for size, ids in self._crossings.items():
            if size == 0 or tail.endswith(_END[:size]):
                mask[ids] = False
        return mask


class AnswerGate:
    """The constraint of one answer, with its thinking."""

    def __init__(self, rules: AnswerRules, begin: Callable[[], Matching]) -> None:
        """Stand in front of an answer; `begin` gives a grammar at its beginning."""
        self._rules, self._begin = rules, begin
        self._grammar: Matching | None = begin()
        self._phase: Literal["opening", "thinking", "answer"] = "opening"
        self._seen = b""
        """All bytes while it opens, the last ones of the thinking later."""

    def allowed(self, best_id: int) -> _Mask:
        """Tell which ids may come next, (ids,), where the model likes `best_id` best."""
        if self._phase == "thinking":
            return self._rules.thinking(self._seen)
        mask = np.zeros_like(self._rules.answer)
        if self._grammar is not None:
            mask = self._grammar.allowed() & self._rules.answer
        if self._phase == "opening":
            opening = self._rules.opening(_without_blanks(self._seen))
            if self._grammar is None or best_id in opening:
                mask[opening] = True
        return mask

    def accept(self, token_id: int) -> None:
        """Go on behind a token."""
        if self._phase == "answer":
            self._follow(token_id)
            return
        self._seen += self._rules.tokenizer.decode_bytes([token_id])
        if self._phase == "opening":
            self._open(token_id)
        elif _END in self._seen:
            self._phase, self._grammar = "answer", self._begin()
        else:
            self._seen = self._seen[1 - len(_END) :]

    def _open(self, token_id: int) -> None:
        if self._grammar is not None and self._grammar.allowed()[token_id]:
            self._grammar.accept(token_id)
        else:
            self._grammar = None  # only the marker is left
        begun = _without_blanks(self._seen)
        if begun == _START:
            self._phase, self._seen = "thinking", b""
        elif not _START.startswith(begun):
            self._phase = "answer"

    def _follow(self, token_id: int) -> None:
        if self._grammar is None:
            raise ConstraintError("the answer left its grammar with its first tokens")
        self._grammar.accept(token_id)


def _without_blanks(data: bytes) -> bytes:
    """Drop leading white space as text has it, from bytes that may end inside a character."""
    text = data.decode("utf-8", errors="surrogateescape")
    return text.lstrip().encode("utf-8", errors="surrogateescape")


def _parts_of_start(tokens: Mapping[int, bytes]) -> list[list[int]]:
    """List for each number of bytes of the marker that are there the ids that go on with it."""
    ids = {data: token_id for token_id, data in tokens.items() if data in _START}
    size = len(_START)
    return [
        [ids[_START[start:end]] for end in range(start + 1, size + 1) if _START[start:end] in ids]
        for start in range(size)
    ]


def _beyond_end(tokens: Mapping[int, bytes]) -> dict[int, list[int]]:
    """List by how many bytes of the marker must be there before the ids that complete it and go on.

    0 stands for tokens that hold the whole marker and more behind it, wherever it begins.
    """
    found: dict[int, list[int]] = {}
    for token_id, data in tokens.items():
        if _END[-1:] not in data:
            continue
        for size in range(1, len(_END)):
            rest = _END[size:]
            if data.startswith(rest) and len(data) > len(rest):
                found.setdefault(size, []).append(token_id)
        if _END in data[:-1]:
            found.setdefault(0, []).append(token_id)
    return found
