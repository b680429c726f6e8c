"""One request in one slot: what the slot holds, what comes next, and the steps that do it.

    prompt   [ reused | prefilled chunk by chunk .......... ]
    slot     [ tokens in the slot: num_cached ] grows with every step
    answer                                                  [ one token a step ]

The work comes in units, each one call of the engine, so that whoever drives a run may do something
else in between: `encode_next` for an image, `prefill_next` for a chunk, and `decode` for one token
of many runs at once. The last chunk and every decoding step give a `Row`, which `take` turns into
text. What the engine may raise comes from the units; what one request's own sampling may raise
comes from `take`.

Does not know: queues, other requests, which slot is free.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engine.protocol import Engine, FloatArray, IntArray, NonFiniteRowsError
from ..errors import NumericError
from ..prompt.tokenizer import Tokenizer
from .channels import Piece
from .choosing import choosing_for
from .clock import RunClock
from .decoding import Decoding
from .request import Request, Result, Usage
from .steps import check_features, decode_step, embed_span, image_places


class Row(NamedTuple):
    """What a step found for one run: logits (V,) or an id, and how its decoding takes that."""

    push: Callable[[Decoding, Any], list[Piece]]
    found: Any
    error: NumericError | None
    """Why it cannot be taken."""


class SlotRun:
    """The state of one request from its first image to its last token."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, request: Request, slot: int) -> None:
        """Plan to answer a checked request in a slot, whose contents are overwritten."""
        prompt = request.prompt
        self.request = request
        self.slot = slot
        self.decoding = Decoding(request, tokenizer, engine.limits.max_tokens - prompt.ids.size)
        self.num_cached = 0
        """Tokens in the slot."""
        self.num_reused = 0
        """Those of them that were there before."""
        self._places = image_places(prompt)
        self._features: dict[int, FloatArray] = {}
        self._clock = RunClock()

    def reuse(self, length: int) -> None:
        """Count on the first tokens of the prompt being in the slot; at least one must not be."""
        assert self.num_cached <= length < self.request.prompt.ids.size
        assert not self._features
        self.num_cached = self.num_reused = length

    @property
    def num_left(self) -> int:
        """Tokens of the prompt that are not in the slot."""
        return max(self.request.prompt.ids.size - self.num_cached, 0)

    @property
    def next_image(self) -> int | None:
        """Number of the next image whose rows are wanted and not there."""
        for index, positions in enumerate(self._places):
            is_wanted = positions.size and positions[-1] >= self.num_cached
            if is_wanted and index not in self._features:
                return index
        return None

    @property
    def ids(self) -> IntArray:
        """Ids of the tokens in the slot, (num_cached,)."""
        new = np.array(self.decoding.ids, dtype=np.int64)
        return np.concatenate([self.request.prompt.ids, new])[: self.num_cached]

    def encode_next(self, engine: Engine) -> FloatArray:
        """Turn `next_image`, which there must be, into its rows (M, C), and return them too.

        Raises:
            InputError: the rows do not fill the image's places.
            NumericError: from the encoder.
        """
        index = self.next_image
        assert index is not None
        with self._clock.encoding():
            features = engine.encode(self.request.prompt.images[index])
        self.give(features)
        return features

    def give(self, features: FloatArray) -> None:
        """Hand over the rows (M, C) of `next_image`, which there must be.

        Raises:
            InputError: the rows do not fill the image's places.
        """
        index = self.next_image
        assert index is not None
        check_features(features, self._places[index])
        self._features[index] = features

    def prefill_next(self, engine: Engine, max_tokens: int) -> Row | None:
        """Append the next tokens of the prompt, with no image left to encode.

        Returns:
            What follows the prompt, if these were its last tokens.
        """
        prompt, start = self.request.prompt, self.num_cached
        stop = min(start + max_tokens, prompt.ids.size)
        is_last = stop == prompt.ids.size
        step, push = choosing_for(engine, [self.decoding])
        with self._clock.prefilling():
            ids = prompt.ids[start:stop]
            hidden = embed_span(engine, ids, self._places, self._features, start)
            rows = np.arange(stop - start)[-1:] if is_last else np.arange(0)
            lengths = np.array([start], dtype=np.int64)
            found = _found(lambda: step([self.slot], hidden[np.newaxis], lengths, rows))
        self.num_cached = stop
        if not is_last:
            return None
        self._features.clear()
        return Row(push, *found[0])

    def take(self, row: Row) -> list[Piece]:
        """Choose a token from what a step found; return the text that this makes certain.

        Raises:
            NumericError: the logits are not finite.
        """
        if row.error is not None:
            raise row.error
        with self._clock.taking(is_first=not self.decoding.ids):
            return row.push(self.decoding, row.found)

    def grow(self, step_s: float) -> None:
        """Count the token that a decoding step of so many seconds has put into the slot."""
        self.num_cached += 1
        self._clock.decode_s += step_s

    def result(self, queued_s: float = 0.0) -> Result:
        """Tell what an ended request came to; `queued_s` is how long it waited for a slot."""
        decoding, prompt = self.decoding, self.request.prompt
        assert decoding.finish_reason is not None
        return Result(
            finish_reason=decoding.finish_reason,
            ids=tuple(decoding.ids),
            cached_tokens=self.num_cached,
            usage=Usage(
                prompt_tokens=prompt.ids.size,
                image_tokens=int(np.count_nonzero(prompt.ids == prompt.media_token_id)),
                reused_tokens=self.num_reused,
                new_tokens=len(decoding.ids),
                thinking_tokens=decoding.thinking_tokens,
            ),
            timings=self._clock.timings(queued_s, max(len(decoding.ids) - 1, 0)),
        )


def decode(engine: Engine, runs: Sequence[SlotRun]) -> list[Row]:
    """Append its last token to each of some runs, in one step, and give a row for each."""
    start = perf_counter()
    step, push = choosing_for(engine, [run.decoding for run in runs])
    slots, last = [run.slot for run in runs], [run.decoding.ids[-1] for run in runs]
    lengths = [run.num_cached for run in runs]
    found = _found(lambda: decode_step(engine, step, slots, last, lengths))
    step_s = perf_counter() - start
    for run in runs:
        run.grow(step_s)
    return [Row(push, *one) for one in found]


class _Found(NamedTuple):
    found: Any
    error: NumericError | None


def _found(step: Callable[[], NDArray[Any]]) -> list[_Found]:
    """Take a step; tell row by row what it found, and which rows are not finite."""
    try:
        return [_Found(row, None) for row in step()]
    except NonFiniteRowsError as error:
        return [
            _Found(row, None if is_good else NumericError(str(error)))
            for row, is_good in zip(error.found, error.is_finite, strict=True)
        ]
