"""Many requests over all slots of an engine, as fast as they go, in no particular order of ends.

A request joins when a slot is free and leaves when it has ended; the running ones are decoded
together, one token at a time. Text is not streamed: for that, and for one request, use `generate`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..engine.protocol import Engine
from ..prompt.tokenizer import Tokenizer
from .channels import Piece
from .choosing import choosing_for
from .decoding import Decoding
from .request import Request
from .steps import check_prompt, decode_step, embed_prompt, prefill


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
    decoding: Decoding
    length: int
    """Tokens in the slot."""
    pieces: list[Piece] = field(default_factory=list)

    def take(self, pieces: list[Piece]) -> bool:
        """Keep what the last token made certain; return whether the request has ended."""
        self.pieces += pieces
        return self.decoding.finish_reason is not None

    def answer(self) -> Answer:
        texts = {"answer": "", "thinking": ""}
        for piece in self.pieces:
            texts[piece.channel] += piece.text
        return Answer(
            index=self.index,
            text=texts["answer"],
            thinking=texts["thinking"],
            ids=tuple(self.decoding.ids),
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
    hidden = embed_prompt(engine, request.prompt)  # (S, C)
    size = len(hidden)
    decoding = Decoding(request, tokenizer, engine.limits.max_tokens - size)
    step, push = choosing_for(engine, [decoding])
    (found,) = prefill(step, slot, hidden, 0, engine.limits.prefill_chunk)
    state = _Running(index=index, decoding=decoding, length=size)
    return state, state.take(push(decoding, found))


def _decode_all(engine: Engine, running: dict[int, _Running]) -> list[int]:
    """Append one token to every running slot; return the slots whose request has ended."""
    slots = sorted(running)
    states = [running[slot] for slot in slots]
    step, push = choosing_for(engine, [state.decoding for state in states])
    ids = [state.decoding.ids[-1] for state in states]
    found = decode_step(engine, step, slots, ids, [state.length for state in states])
    ended = []
    for slot, state, row in zip(slots, states, found, strict=True):
        state.length += 1
        if state.take(push(state.decoding, row)):
            ended.append(slot)
    return ended
