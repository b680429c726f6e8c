"""One request in one slot: prompt in, pieces of text out.

The phases, in order:

1. check   the request against the limits, before anything is computed
2. encode  images through the encoder
3. prefill the prompt into the slot, in chunks; logits of its last token only
4. decode  choose a token, release text, append the token, until something ends it

Where the highest logit is all that counts, the engine chooses and gives no logits (`choosing`).
`SlotRun` is phases 2 to 4 in units, which a loop over many slots drives in the same way.

Does not know: chat templates, image files, backends.
"""

from collections.abc import Generator, Iterator

from ..engine.protocol import Engine
from ..prompt.tokenizer import Tokenizer
from .channels import Piece
from .request import Request
from .slot_run import SlotRun, decode
from .steps import check_prompt


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
    return _pieces(engine, SlotRun(engine, tokenizer, request, slot))


def _pieces(engine: Engine, run: SlotRun) -> Generator[Piece, None, None]:
    decoding = run.decoding
    try:
        yield from _phases(engine, run)
        yield from decoding.cancel()  # phases that left no finish reason were cancelled
    except (GeneratorExit, KeyboardInterrupt):
        decoding.cancel()
        raise
    finally:
        if decoding.finish_reason:
            run.request.result = run.result()


def _phases(engine: Engine, run: SlotRun) -> Iterator[Piece]:
    request, row = run.request, None
    while run.next_image is not None:
        if request.is_cancelled:
            return
        run.encode_next(engine)
    while row is None:
        row = run.prefill_next(engine, engine.limits.prefill_chunk)
        if request.is_cancelled:
            return
    while True:
        yield from run.take(row)
        if run.decoding.finish_reason or request.is_cancelled:
            return
        (row,) = decode(engine, [run])
