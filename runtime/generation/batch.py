"""Many requests over all slots of an engine, as fast as they go, in no particular order of ends.

A request joins when a slot is free and leaves when it has ended; the running ones are decoded
together, one token at a time. Text is not streamed: for that, and for one request, use `generate`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..engine.protocol import Engine
from ..prompt.tokenizer import Tokenizer
from .channels import Piece
from .request import Request
from .slot_run import Row, SlotRun, decode
from .steps import check_prompt


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One ended request."""

    index: int
    """Its place among the requests."""
    text: str
    """The answer channel."""
    thinking: str
    ids: tuple[int, ...]


@dataclass(kw_only=True)
class _Running:
    """One request in its slot."""

    index: int
    run: SlotRun
    pieces: list[Piece] = field(default_factory=list)

    def take(self, row: Row) -> bool:
        """Keep what the last token made certain; return whether the request has ended."""
        self.pieces += self.run.take(row)
        return self.run.decoding.finish_reason is not None

    def answer(self) -> Answer:
        texts = {"answer": "", "thinking": ""}
        for piece in self.pieces:
            texts[piece.channel] += piece.text
        return Answer(
            index=self.index,
            text=texts["answer"],
            thinking=texts["thinking"],
            ids=tuple(self.run.decoding.ids),
        )


def generate_batch(
    engine: Engine, tokenizer: Tokenizer, requests: Iterable[Request]
) -> Iterator[Answer]:
    """Answer requests, each yielded when it ends; they are taken one by one as slots get free.

    Raises:
        CapacityError: a prompt does not fit; those before it in their slots are lost.
        NumericError: from the engine.
    """
    waiting = iter(enumerate(requests))
    free = list(range(engine.limits.max_slots))[::-1]
    running: dict[int, _Running] = {}
    while True:
        while free and (following := next(waiting, None)):
            slot = free.pop()
            state, has_ended = _start(engine, tokenizer, slot, *following)
            if has_ended:
                yield state.answer()
                free.append(slot)
            else:
                running[slot] = state
        if not running:
            return
        for slot in _decode_all(engine, running):
            yield running.pop(slot).answer()
            free.append(slot)


def _start(
    engine: Engine, tokenizer: Tokenizer, slot: int, index: int, request: Request
) -> tuple[_Running, bool]:
    """Prefill a request and choose its first token; tell whether that was all."""
    check_prompt(request.prompt, engine.limits)
    run, row = SlotRun(engine, tokenizer, request, slot), None
    while run.next_image is not None:
        run.encode_next(engine)
    while row is None:
        row = run.prefill_next(engine, engine.limits.prefill_chunk)
    state = _Running(index=index, run=run)
    return state, state.take(row)


def _decode_all(engine: Engine, running: dict[int, _Running]) -> list[int]:
    """Append one token to every running slot; return the slots whose request has ended."""
    slots = sorted(running)
    rows = decode(engine, [running[slot].run for slot in slots])
    return [slot for slot, row in zip(slots, rows, strict=True) if running[slot].take(row)]
