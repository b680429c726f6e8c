"""One request in one slot: prompt in, pieces of text out.

The phases, in order:

1. check   the request against the limits, before anything is computed
2. embed   images through the encoder, ids through the table, image rows over placeholder rows
3. prefill the prompt into the slot, in chunks; logits of its last token only
4. decode  choose a token, release text, append the token, until something ends it

`Decoding` is phase 4 without an engine, fed one row of logits at a time: a loop over many slots
can drive many of them, with the plain functions below.

Does not know: chat templates, image files, backends.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from ..engine.protocol import Engine, FloatArray, IntArray
from ..errors import CapacityError, InputError, describe_problems
from ..limits import Limits
from ..prompt.encoder import Prompt
from ..prompt.special_tokens import THINK_END
from ..prompt.tokenizer import TextStream, Tokenizer
from .channels import ChannelSplitter, Piece
from .sampling import Choice, Sampler, Sampling
from .stopping import FinishReason, GenerationLimits, StopStrings


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    """Image tokens included."""
    image_tokens: int
    new_tokens: int
    """All generated ids: thinking, markers, answer, forced tokens, the stop id."""
    thinking_tokens: int
    """Generated behind `◁think▷`, up to and with the token that completes `◁/think▷`."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of one request went; 0 for a phase that was not reached."""

    encode_s: float
    """Phase 2: images and embedding table."""
    prefill_s: float
    time_to_first_token_s: float
    """From the start of phase 2 until the first token is chosen."""
    decode_s: float
    """All tokens after the first, without the time that a consumer takes between pieces."""
    decode_tokens_per_s: float
    """Tokens after the first, per second of `decode_s`; 0 without any."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a request came to."""

    finish_reason: FinishReason
    ids: tuple[int, ...]
    """Every generated id as it was chosen or forced, the stop id included."""
    cached_tokens: int
    """Tokens in the slot: the prompt and all of `ids` but those that no step followed."""
    usage: Usage
    timings: Timings


class Request:
    """One prompt and how to answer it; carries the result when the generation has ended."""

    def __init__(
        self,
        prompt: Prompt,
        *,
        stop_ids: frozenset[int],
        sampling: Sampling | None = None,
        limits: GenerationLimits | None = None,
    ) -> None:
        """Describe a request; nothing is computed.

        Args:
            prompt: ids and images.
            stop_ids: ids that end the answer and never become text.
            sampling: greedy if left out.
            limits: the model's own stop ids and the slot alone, if left out.
        """
        self.prompt = prompt
        self.stop_ids = stop_ids
        self.sampling = sampling or Sampling.greedy()
        self.limits = limits or GenerationLimits()
        self.result: Result | None = None
        """None until the generator has ended, and for good if it ended with an error."""
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask for the end, from any thread; the step that runs now is finished first."""
        self._cancelled.set()


class Decoding:
    """One sequence from its first logits to its finish reason; knows no engine and no clock.

    Feed `push` with the logits of the last token; while `finish_reason` is None, append `ids[-1]`
    to the sequence's slot and feed the logits of that.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, room: int) -> None:
        """Start behind a prompt; `room` is how many tokens the slot still takes, at least 1."""
        limits = request.limits
        self._stop_ids = request.stop_ids
        self._max_new = min(room, limits.max_new_tokens or room)
        self._max_thinking = limits.max_thinking_tokens
        self._closing_ids = tokenizer.encode(THINK_END)
        self._sampler = Sampler(request.sampling, request.prompt.ids)
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
            choice = self._sampler.describe(logits, self._forced.popleft())
        else:
            choice = self._sampler.choose(logits, self.ids)
        self.ids.append(choice.token_id)
        self._unreported.append(choice)
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

    def cancel(self) -> list[Piece]:
        """End here and return the text that was held back; does nothing when ended already."""
        return [] if self.finish_reason else self._finish("cancelled", [])

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


def generate(
    engine: Engine, tokenizer: Tokenizer, request: Request, *, slot: int = 0
) -> Generator[Piece, None, None]:
    """Answer one request in one slot, whose earlier contents are overwritten.

    The checks are made at once, everything else while the pieces are taken. All pieces' ids
    together are `result.ids`. Closing the generator, and Ctrl-C, cancel the request.

    Raises:
        CapacityError: the prompt or an image is over the limits.
        InputError: images and placeholders do not match.
        NumericError: from the engine while pieces are taken; `request.result` stays None.
    """
    if request.result is not None:
        raise ValueError("this request has a result; make a new one")
    check_prompt(request.prompt, engine.limits)
    return _Run(engine, tokenizer, request, slot).pieces()


class _Run:
    """The phases of one request, their clock, and what is in the slot."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, request: Request, slot: int) -> None:
        self._engine = engine
        self._request = request
        self._slot = slot
        room = engine.limits.max_tokens - request.prompt.ids.size
        self._decoding = Decoding(request, tokenizer, room)
        self._cached = 0
        self._encode_s = self._prefill_s = self._decode_s = self._first_s = 0.0

    def pieces(self) -> Generator[Piece, None, None]:
        try:
            yield from self._phases()
            yield from self._decoding.cancel()  # phases that left no finish reason were cancelled
        except (GeneratorExit, KeyboardInterrupt):
            self._decoding.cancel()
            raise
        finally:
            if self._decoding.finish_reason:
                self._request.result = self._make_result(self._decoding.finish_reason)

    def _phases(self) -> Iterator[Piece]:
        engine, request, decoding = self._engine, self._request, self._decoding
        prompt = request.prompt
        start = perf_counter()

        # 2. embed
        features = []
        for image in prompt.images:
            if request.is_cancelled:
                return
            features.append(engine.encode(image))  # (M, C)
        hidden = _place_images(engine.embed(prompt.ids), prompt, features)  # (S, C)
        self._encode_s = perf_counter() - start

        # 3. prefill
        size, chunk = prompt.ids.size, engine.limits.prefill_chunk
        rows = np.array([size - 1])
        for logits in _steps(engine, self._slot, hidden, 0, chunk, rows=rows):  # noqa: B007  (1, V) at last
            self._cached = min(self._cached + chunk, size)
            if request.is_cancelled:
                return
        self._prefill_s = perf_counter() - start - self._encode_s

        # 4. decode
        pieces = decoding.push(logits[0])
        self._first_s = perf_counter() - start
        while True:
            yield from pieces
            if decoding.finish_reason:
                return
            if request.is_cancelled:
                return
            step_start = perf_counter()
            logits = decode_step(engine, [self._slot], decoding.ids[-1:], [self._cached])  # (1, V)
            self._cached += 1
            pieces = decoding.push(logits[0])
            self._decode_s += perf_counter() - step_start

    def _make_result(self, reason: FinishReason) -> Result:
        decoding, prompt = self._decoding, self._request.prompt
        later_tokens = max(len(decoding.ids) - 1, 0)
        return Result(
            finish_reason=reason,
            ids=tuple(decoding.ids),
            cached_tokens=self._cached,
            usage=Usage(
                prompt_tokens=prompt.ids.size,
                image_tokens=int(np.count_nonzero(prompt.ids == prompt.media_token_id)),
                new_tokens=len(decoding.ids),
                thinking_tokens=decoding.thinking_tokens,
            ),
            timings=Timings(
                encode_s=self._encode_s,
                prefill_s=self._prefill_s,
                time_to_first_token_s=self._first_s,
                decode_s=self._decode_s,
                decode_tokens_per_s=later_tokens / self._decode_s if self._decode_s else 0.0,
            ),
        )


def check_prompt(prompt: Prompt, limits: Limits) -> None:
    """Refuse what cannot be answered, before anything is computed.

    Raises:
        CapacityError: the prompt is too long or leaves no room for a new token, or an image has
            too many patches.
        InputError: the prompt is empty, or its images and placeholders do not match.
    """
    size = prompt.ids.size
    if size == 0:
        raise InputError("prompt: it has no tokens; at least one is needed")
    if size > min(limits.max_input_tokens, limits.max_tokens - 1):
        raise CapacityError(
            f"prompt: {size} tokens and at least 1 new one do not fit max_tokens "
            f"{limits.max_tokens} with max_input_tokens {limits.max_input_tokens}; shorten the "
            f"prompt, use fewer or smaller images, or rebuild with at least {size + 1} and {size}"
        )
    problems = [
        f"image {index} has {h} x {w} = {h * w} patches"
        for index, (h, w) in enumerate(image.grid for image in prompt.images)
        if h * w > limits.max_patches
    ]
    if problems:
        raise CapacityError(
            f"{describe_problems('prompt', problems)}; the engine takes images of at most "
            f"{limits.max_patches}: shrink them, or rebuild with a larger max_patches"
        )
    _check_places(prompt, sum(image.num_tokens for image in prompt.images))


def embed_prompt(engine: Engine, prompt: Prompt) -> FloatArray:
    """Encode the images and embed the ids of a prompt, (S, C).

    Raises:
        InputError: the images' rows are not as many as the placeholder ids.
    """
    features = [engine.encode(image) for image in prompt.images]
    return _place_images(engine.embed(prompt.ids), prompt, features)


def prefill(engine: Engine, slot: int, hidden: FloatArray, start: int, chunk: int) -> FloatArray:
    """Append embedded tokens (S, C) behind `start` and return the last one's logits (V,)."""
    *_, logits = _steps(engine, slot, hidden, start, chunk, rows=np.array([len(hidden) - 1]))
    last: FloatArray = logits[0]
    return last


def prefill_logits(
    engine: Engine, slot: int, hidden: FloatArray, start: int, chunk: int
) -> FloatArray:
    """Append embedded tokens (S, C) behind `start` and return all their logits (S, V)."""
    rows = np.arange(len(hidden))
    return np.concatenate(list(_steps(engine, slot, hidden, start, chunk, rows=rows)))


def decode_step(
    engine: Engine, slots: Sequence[int], ids: Sequence[int], lengths: Sequence[int]
) -> FloatArray:
    """Append one token to each of B slots and return their logits (B, V)."""
    hidden = engine.embed(np.asarray(ids, dtype=np.int64))[:, np.newaxis]  # (B, 1, C)
    return engine.step(slots, hidden, np.asarray(lengths, dtype=np.int64), np.arange(len(slots)))


def _steps(
    engine: Engine, slot: int, hidden: FloatArray, start: int, chunk: int, *, rows: IntArray
) -> Iterator[FloatArray]:
    """Append (S, C) in chunks; a step gives the logits of those `rows` of S that are in it."""
    for first in range(0, len(hidden), chunk):
        part = hidden[np.newaxis, first : first + chunk]  # (1, chunk, C), the last may be shorter
        inside = rows[(first <= rows) & (rows < first + chunk)] - first
        yield engine.step([slot], part, np.array([start + first], dtype=np.int64), inside)


def _place_images(hidden: FloatArray, prompt: Prompt, features: Sequence[FloatArray]) -> FloatArray:
    """Put image rows (M, C) in the place of the placeholders' rows of (S, C), in order."""
    _check_places(prompt, sum(map(len, features)))
    if features:
        hidden = hidden.copy()
        hidden[prompt.ids == prompt.media_token_id] = np.concatenate(features)
    return hidden


def _check_places(prompt: Prompt, num_rows: int) -> None:
    num_places = int(np.count_nonzero(prompt.ids == prompt.media_token_id))
    if num_places != num_rows:
        raise InputError(
            f"prompt: expected {num_rows} placeholder ids for {len(prompt.images)} images, found "
            f"{num_places}; each image needs one for each of its image tokens"
        )
