"""Conversations of several turns, each turn a sample of its own behind those before it.

Loss over several turns shows what one question cannot: older tokens are read again and again from
the cache as it is kept. Earlier answers stand as the set has them, without their thinking, as a
chat goes on.

Where held-out conversations have several turns themselves, these are taken; else questions of
single ones are joined, those about the same pictures first, which are then shown once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.messages import Image, Message, Text, drop_thinking

from .examples import Example
from .samples import Sample, encode

MAX_CONVERSATIONS, HELD_OUT_FOR_ONE = 6, 8
"""One for eight held-out conversations, up to six: every turn runs all that is before it, so that
they take longer than as many samples."""
MAX_TURNS = 4
MAX_TOKENS = 4096
"""Of a turn with all that is before it; longer ones are left out. Memory grows with the square."""


def turns_of(held_out: Sequence[Example]) -> list[Example]:
    """Give the first turns of some conversations, one after the other; none without replies."""
    told = [one for one in held_out if one.reply]
    several = [list(_own_turns(one)) for one in told if one.turn > 1]
    conversations = several or list(_joined([one for one in told if one.turn == 1]))
    count = max(1, min(MAX_CONVERSATIONS, len(held_out) // HELD_OUT_FOR_ONE))
    return [turn for one in conversations[:count] for turn in one[:MAX_TURNS]]


def encode_turns(turns: Sequence[Example], prompts: PromptEncoder, max_tokens: int) -> list[Sample]:
    """Encode turns, leaving out those that are longer than any sample may be, or than 4096."""
    allowed = min(max_tokens, MAX_TOKENS)
    samples = (encode(one, prompts, max_tokens=None) for one in turns)
    return [one for one in samples if len(one.ids) <= allowed]


def _own_turns(example: Example) -> Iterator[Example]:
    """Take a conversation apart into its turns."""
    for place, message in enumerate(example.messages):
        reply = _text(message)
        if message.role == "assistant" and reply:
            yield _turn(replace(example, messages=example.messages[:place], reply=reply, answer=""))
    yield _turn(example)


def _joined(singles: Sequence[Example]) -> Iterator[list[Example]]:
    """Make conversations of single questions."""
    by_images: dict[str, list[Example]] = {}
    for one in singles:
        by_images.setdefault(repr(_sources(one.messages)), []).append(one)
    others = []
    for group in by_images.values():
        if len(group) > 1 and _sources(group[0].messages):
            yield list(_behind_each_other(group[:MAX_TURNS], repeats_images=False))
        else:
            others += group
    for start in range(0, len(others) - 1, MAX_TURNS):
        yield list(_behind_each_other(others[start : start + MAX_TURNS], repeats_images=True))


def _behind_each_other(questions: Iterable[Example], *, repeats_images: bool) -> Iterator[Example]:
    history: tuple[Message, ...] = ()
    for one in questions:
        asked = one.messages
        if history:
            asked = tuple(message for message in asked if message.role != "system")
        if history and not repeats_images:
            asked = tuple(map(_without_images, asked))
        yield _turn(replace(one, messages=(*history, *asked)))
        answer = Message(role="assistant", parts=(Text(text=one.reply),))
        history = (*history, *asked, answer)


def _turn(example: Example) -> Example:
    """Forget what earlier answers thought."""
    return replace(example, messages=drop_thinking(example.messages))


def _without_images(message: Message) -> Message:
    parts = tuple(part for part in message.parts if not isinstance(part, Image))
    return replace(message, parts=parts)


def _sources(messages: Sequence[Message]) -> list[object]:
    parts = [part for message in messages for part in message.parts]
    return [part.source for part in parts if isinstance(part, Image)]


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, Text))
