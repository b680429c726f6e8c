"""One request in one slot: prompt in, pieces of text out.

The phases, in order:

1. check   the request against the limits, before anything is computed
2. embed   images through the encoder, ids through the table, image rows over placeholder rows
3. prefill the prompt into the slot, in chunks; logits of its last token only
4. decode  choose a token, release text, append the token, until something ends it

Where the highest logit is all that counts, the engine chooses and gives no logits (`choosing`).
`Decoding` is phase 4 without an engine, fed one row of logits or one id at a time: a loop over many
slots can drive many of them, with the plain functions below.

Does not know: chat templates, image files, backends.
"""

from collections.abc import Generator, Iterator
from time import perf_counter

import numpy as np

from ..engine.protocol import Engine
from ..prompt.tokenizer import Tokenizer
from .channels import Piece
from .choosing import choosing_for
from .decoding import Decoding
from .request import Request, Result, Timings, Usage
from .steps import check_prompt, decode_step, place_images, run_chunks
from .stopping import FinishReason


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
        prompt, (step, push) = request.prompt, choosing_for(engine, [decoding])
        start = perf_counter()

        # 2. embed
        features = []
        for image in prompt.images:
            if request.is_cancelled:
                return
            features.append(engine.encode(image))  # (M, C)
        hidden = place_images(engine.embed(prompt.ids), prompt, features)  # (S, C)
        self._encode_s = perf_counter() - start

        # 3. prefill
        size, chunk = prompt.ids.size, engine.limits.prefill_chunk
        rows = np.array([size - 1])
        for found in run_chunks(step, self._slot, hidden, 0, chunk, rows=rows):  # noqa: B007  one row at last
            self._cached = min(self._cached + chunk, size)
            if request.is_cancelled:
                return
        self._prefill_s = perf_counter() - start - self._encode_s

        # 4. decode
        pieces = push(decoding, found[0])
        self._first_s = perf_counter() - start
        while True:
            yield from pieces
            if decoding.finish_reason:
                return
            if request.is_cancelled:
                return
            step_start = perf_counter()
            found = decode_step(engine, step, [self._slot], decoding.ids[-1:], [self._cached])
            self._cached += 1
            pieces = push(decoding, found[0])
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
