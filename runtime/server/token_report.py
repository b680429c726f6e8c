"""Log probabilities of the answer's tokens, in the form of OpenAI's API.

The tokens of the thinking and of its markers are left out, as is the one that ends the answer: what
is reported, joined, is the answer (with the stop string that ended it, if one did). A token that
closes the thinking and begins the answer counts as thinking.
"""

from collections.abc import Iterable
from typing import Any

from ..generation.channels import ChannelSplitter
from ..generation.sampling import Choice
from ..prompt.tokenizer import TextStream, Tokenizer

_LEAST = -9999.0
"""OpenAI's word for a probability of zero."""


class TokenReport:
    """Tells the answer's tokens from the thinking's, one after the other."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], num_top: int) -> None:
        """Start at the beginning of a generated text; report `num_top` alternatives."""
        self._tokenizer, self._stop_ids, self._num_top = tokenizer, stop_ids, num_top
        self._stream, self._splitter = TextStream(tokenizer), ChannelSplitter()
        self._waiting: list[Choice] = []
        """Tokens at the beginning, which may still become a marker."""
        self._is_leading = True

    def push(self, choices: Iterable[Choice]) -> list[dict[str, Any]]:
        """Take tokens in their order; report those that certainly are the answer's."""
        found: list[Choice] = []
        for choice in choices:
            if choice.token_id not in self._stop_ids:
                found += self._place(choice)
        return [self._describe(choice) for choice in found]

    def flush(self) -> list[dict[str, Any]]:
        """Report what was waiting; the text has ended."""
        waiting, self._waiting = self._waiting, []
        return [self._describe(choice) for choice in waiting]

    def _place(self, choice: Choice) -> list[Choice]:
        """Return the tokens that this one shows to be the answer's."""
        was_thinking = self._splitter.channel == "thinking"
        text = ""
        if choice.token_id < self._tokenizer.vocab_size:
            text = self._stream.push(choice.token_id)
            self._splitter.push(text)
        if was_thinking:
            return []
        if not self._is_leading:
            return [choice]
        self._waiting.append(choice)
        if self._splitter.channel == "thinking":
            self._is_leading, self._waiting = False, []
            return []
        if self._splitter.is_holding or not text:  # a marker, or a character, is just forming
            return []
        self._is_leading = False
        waiting, self._waiting = self._waiting, []
        return waiting

    def _describe(self, choice: Choice) -> dict[str, Any]:
        assert choice.logprob is not None
        top = [self._token(best.token_id, best.logprob) for best in choice.top[: self._num_top]]
        return {**self._token(choice.token_id, choice.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        is_known = token_id < self._tokenizer.vocab_size  # a table may be padded behind it
        data = self._tokenizer.decode_bytes([token_id]) if is_known else b""
        return {
            "token": data.decode(errors="replace"),
            "logprob": max(logprob, _LEAST),
            "bytes": list(data),
        }
