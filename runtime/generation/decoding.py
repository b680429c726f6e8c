"""One sequence from logits to text, without an engine and without a clock.

Fed one row of logits, or one id, at a time, so that a loop over many slots can drive many of them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ..engine.protocol import FloatArray
from ..prompt.special_tokens import THINK_END
from ..prompt.tokenizer import TextStream, Tokenizer
from .channels import ChannelSplitter, Piece
from .constraint import mask_for
from .request import Request
from .sampling import Choice, Sampler
from .stopping import FinishReason, StopStrings


class Decoding:
    """One sequence from its first logits to its finish reason; knows no engine and no clock.

    Feed `push` with the logits of the last token; while `finish_reason` is None, append `ids[-1]`
    to the sequence's slot and feed the logits of that. Where `needs_logits` is false, `push_best`
    with the id of the highest logit does the same.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, room: int) -> None:
        """Start behind a prompt; `room` is how many tokens the slot still takes, at least 1."""
        limits = request.limits
        self._stop_ids = request.stop_ids
        self._max_new = min(room, limits.max_new_tokens or room)
        self._max_thinking = limits.max_thinking_tokens
        self._closing_ids = tokenizer.encode(THINK_END)
        self._sampler = Sampler(request.sampling, request.prompt.ids)
        self._constraint = request.grammar.start() if request.grammar else None
        self.needs_logits = not request.sampling.is_plain_greedy or self._constraint is not None
        """Whether a token may be another one than the best, or says more than its id."""
        self._num_texts = tokenizer.vocab_size
        self._stream = TextStream(tokenizer)
        self._splitter = ChannelSplitter()
        self._stops = StopStrings(limits.stop)
        self._forced: deque[int] = deque()
        self._unreported: list[Choice] = []
        self.ids: list[int] = []
        """Generated ids."""
        self.thinking_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, logits: FloatArray) -> list[Piece]:
        """Choose the next token from logits (V,) and return the text that it makes certain."""
        if self._forced:
            return self._take(self._sampler.describe(logits, self._forced.popleft()))
        allowed = mask_for(self._constraint, logits) if self._constraint else None
        return self._take(self._sampler.choose(logits, self.ids, allowed))

    def push_best(self, token_id: int) -> list[Piece]:
        """Take the id of the highest logit, of equal ones the lowest, as `push` would choose it."""
        assert not self.needs_logits
        chosen = self._forced.popleft() if self._forced else int(token_id)
        return self._take(Choice(token_id=chosen))

    def cancel(self) -> list[Piece]:
        """End here and return the text that was held back; does nothing when ended already."""
        return [] if self.finish_reason else self._finish("cancelled", [])

    def _take(self, choice: Choice) -> list[Piece]:
        """Append a token that was chosen or forced."""
        self.ids.append(choice.token_id)
        self._unreported.append(choice)
        if self._constraint is not None:
            self._constraint.accept(choice.token_id)
        if choice.token_id in self._stop_ids:
            return self._finish("stop", [])
        self.thinking_tokens += self._splitter.channel == "thinking"
        # A table may be padded: its ids behind the tokenizer's have no text.
        text = self._stream.push(choice.token_id) if choice.token_id < self._num_texts else ""
        pieces = self._released(self._splitter.push(text))
        if self._stops.is_found or len(self.ids) >= self._max_new:
            return self._finish("length", pieces)
        self._watch_thinking(is_settled=bool(text) and not self._splitter.is_holding)
        return self._with_choices(pieces)

    def _watch_thinking(self, *, is_settled: bool) -> None:
        """Force the closing marker when the thinking budget is spent.

        A marker or a character that is just forming may finish first, for as many tokens as a
        marker has; otherwise a piece of it would stay in the text before the forced one.
        """
        is_thinking = self._splitter.channel == "thinking"
        if self._forced or self._max_thinking is None or not is_thinking:
            return
        over = self.thinking_tokens - self._max_thinking
        if over >= 0 and (is_settled or over >= len(self._closing_ids)):
            self._forced.extend(self._closing_ids)

    def _finish(self, reason: FinishReason, pieces: list[Piece]) -> list[Piece]:
        """Flush text, marker and stop string, in this order; a stop string found wins."""
        pieces += self._released(self._splitter.push(self._stream.flush()))
        pieces += self._released(self._splitter.flush())
        rest = self._stops.flush()
        if rest or (self._unreported and not pieces):
            # Without text, the last piece carries the last tokens.
            pieces.append(Piece(text=rest, channel=self._splitter.channel))
        is_stopped = self._stops.is_found and reason != "cancelled"
        self.finish_reason = "stop" if is_stopped else reason
        return self._with_choices(pieces)

    def _released(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Pass thinking on and answer through the stop strings."""
        released = []
        for piece in pieces:
            text = piece.text if piece.channel == "thinking" else self._stops.push(piece.text)
            if text:
                released.append(Piece(text=text, channel=piece.channel))
        return released

    def _with_choices(self, pieces: list[Piece]) -> list[Piece]:
        """Let the first piece carry the tokens since the piece before."""
        if pieces:
            pieces[0] = replace(pieces[0], choices=tuple(self._unreported))
            self._unreported = []
        return pieces
