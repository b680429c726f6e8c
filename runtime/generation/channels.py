"""Tells a thinking model's thoughts from its answer, in text that arrives in pieces.

    "◁think▷ ... ◁/think▷ ..."
            └thinking┘    └answer┘

The markers are ordinary text of several tokens, cut anywhere. The rules:

* The first characters of the text, after any whitespace, may be `◁think▷`; then everything up to
  the first `◁/think▷` is thinking, and everything behind it is answer. Anywhere else a marker is
  plain text.
* If the text ends before `◁/think▷`, everything behind `◁think▷` is thinking.
* Only the two markers are taken out; no other character is. Whitespace before `◁think▷` counts as
  thinking, whitespace behind `◁/think▷` is the beginning of the answer.

Text is held back only while it may still become a marker.

Does not know: tokens, stop strings.
"""

from dataclasses import dataclass
from typing import Literal

from ..prompt.special_tokens import THINK_END, THINK_START
from .sampling import Choice
from .stopping import forming_length

Channel = Literal["thinking", "answer"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some text of one channel, in the order in which it was generated."""

    text: str
    channel: Channel
    choices: tuple[Choice, ...] = ()
    """Tokens chosen since the piece before; a splitter, which knows no tokens, gives none."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens chosen since the piece before; not always the ones of this text."""
        return tuple(choice.token_id for choice in self.choices)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log probabilities beside `token_ids`; empty when they were not asked for."""
        return tuple(choice.logprob for choice in self.choices if choice.logprob is not None)


class ChannelSplitter:
    """Splits one text; feed it with `push`, end it with `flush`."""

    def __init__(self) -> None:
        """Start at the beginning of a text, where a marker may open the thinking."""
        self._held = ""
        self._is_leading = True
        self._channel: Channel = "answer"

    @property
    def channel(self) -> Channel:
        """The channel of the text that comes next, as far as is known."""
        return self._channel

    @property
    def is_holding(self) -> bool:
        """Whether text is held back that may become a marker."""
        return bool(self._held)

    def push(self, text: str) -> list[Piece]:
        """Take a piece of text and return what is certain, at most one piece a channel."""
        self._held += text
        pieces: list[Piece] = []
        if self._is_leading:
            self._open(pieces)
        if self._channel == "thinking":
            self._think(pieces)
        if self._channel == "answer" and not self._is_leading:
            self._release(pieces, len(self._held))
        return pieces

    def flush(self) -> list[Piece]:
        """Return what was held back; the text has ended."""
        pieces: list[Piece] = []
        self._release(pieces, len(self._held))
        return pieces

    def _open(self, pieces: list[Piece]) -> None:
        text = self._held.lstrip()
        if text.startswith(THINK_START):
            blank = self._held[: len(self._held) - len(text)]
            self._held = blank + text[len(THINK_START) :]
            self._is_leading = False
            self._channel = "thinking"
        elif not THINK_START.startswith(text):  # "" and every beginning of the marker wait
            self._is_leading = False

    def _think(self, pieces: list[Piece]) -> None:
        end = self._held.find(THINK_END)
        if end < 0:
            self._release(pieces, len(self._held) - forming_length(self._held, (THINK_END,)))
            return
        self._release(pieces, end)
        self._held = self._held[len(THINK_END) :]
        self._channel = "answer"

    def _release(self, pieces: list[Piece], length: int) -> None:
        if length:
            pieces.append(Piece(text=self._held[:length], channel=self._channel))
            self._held = self._held[length:]
