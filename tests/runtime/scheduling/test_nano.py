"""Many requests at once on a real engine, with pictures: each says what it says alone."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration.data.examples import load_examples
from runtime import GenerationLimits, Request, Sampling, Session
from runtime.engine.protocol import FloatArray
from runtime.generation.generate import generate
from runtime.generation.request import Result
from runtime.prompt.encoder import Prompt
from runtime.prompt.messages import parse_messages
from runtime.prompt.patches import PatchedImage
from runtime.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
LIMITS = GenerationLimits(max_new_tokens=40)
NUM_TOGETHER = 16


@pytest.fixture(scope="module")
def session(nano: Path) -> Session:
    return Session.open(nano, num_threads=1)


@pytest.fixture(scope="module")
def prompts(session: Session) -> list[Prompt]:
    """Questions of all kinds, some about the same picture, some without a picture."""
    questions = [example.messages for example in load_examples("nano")[:11]]
    asked = [session.encode(messages) for messages in questions]
    asked += [session.encode(messages) for messages in questions[:3]]
    texts = ("What is 4 + 38?", "Add 12 and 7. " * 8)
    return [*asked, *(session.encode([{"role": "user", "content": text}]) for text in texts)]


@pytest.fixture
def scheduler(session: Session) -> Iterator[Scheduler]:
    with session.scheduling() as one:
        yield one


def ask(session: Session, prompt: Prompt, sampling: Sampling | None = None) -> Request:
    return session.request(prompt, sampling or Sampling.greedy(), LIMITS)


def result_alone(session: Session, request: Request) -> Result:
    again = session.request(request.prompt, request.sampling, request.limits)
    list(generate(session.engine, session.tokenizer, again, slot=0))
    assert again.result is not None
    return again.result


@pytest.fixture(scope="module")
def alone(session: Session, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    return [result_alone(session, ask(session, prompt)).ids for prompt in prompts]


def test_sixteen_mixed_requests_at_once_are_neither_lost_nor_mixed_up_nor_changed(
    session: Session, prompts: list[Prompt], alone: list[tuple[int, ...]], scheduler: Scheduler
) -> None:
    sampled = [Sampling(temperature=0.8, seed=n, logprobs=n % 3) for n in range(4)]
    requests = [ask(session, prompt) for prompt in prompts]
    beside = [ask(session, prompts[n], sampling) for n, sampling in enumerate(sampled)]
    order = np.random.default_rng(1).permutation(NUM_TOGETHER + len(beside)).tolist()
    everything = [*requests, *beside]
    results: dict[int, Result | None] = {}

    def send(places: list[int]) -> None:
        handles = [(place, scheduler.submit(everything[place])) for place in places]
        for place, handle in handles:
            results[place] = handle.wait(PATIENCE_S).result

    senders = [threading.Thread(target=send, args=(order[n::5],)) for n in range(5)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(requests) == NUM_TOGETHER
    found = [results[place] for place in range(NUM_TOGETHER)]
    assert [one.ids if one else () for one in found] == alone
    assert all(results[place] is not None for place in order)
    assert scheduler.drain(PATIENCE_S)
    stats = scheduler.stats()
    assert (stats.num_free_slots, stats.errors) == (4, {})
    assert stats.reused_tokens > 0


def test_a_second_turn_about_a_picture_runs_no_encoder_and_prefills_what_is_new(
    session: Session, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[PatchedImage] = []
    encode = session.engine.encode

    def encode_and_note(image: PatchedImage) -> FloatArray:
        encoded.append(image)
        return encode(image)

    monkeypatch.setattr(session.engine, "encode", encode_and_note)
    messages = load_examples("nano")[0].messages
    with session.scheduling() as scheduler:
        handle = scheduler.submit(ask(session, session.encode(messages)))
        text = "".join(piece.text for piece in handle.pieces() if piece.channel == "answer")
        more = [{"role": "assistant", "content": text}, {"role": "user", "content": "Why?"}]
        again = ask(session, session.encode([*messages, *parse_messages(more)]))
        encoded.clear()
        result = scheduler.submit(again).wait(PATIENCE_S).result
    assert encoded == []
    assert result is not None
    first_len = len(prompts[0])
    assert first_len <= result.usage.reused_tokens < len(again.prompt)
    assert result.ids == result_alone(session, again).ids


def test_a_copied_beginning_gives_the_logits_of_one_that_was_computed(
    session: Session, prompts: list[Prompt]
) -> None:
    engine, prompt = session.engine, prompts[0]
    session.logits(prompt)  # in some slot, which the next call uses again
    ids = prompt.ids
    hidden = engine.embed(ids)[np.newaxis]
    start = np.zeros(1, dtype=np.int64)
    engine.step([1], hidden, start, np.arange(0))
    engine.copy_prefix(1, 3, len(ids) - 2)
    rows, at = np.arange(2), np.array([len(ids) - 2])
    copied = engine.step([3], hidden[:, -2:], at, rows)
    computed = engine.step([1], hidden[:, -2:], at, rows)
    assert (copied == computed).all()
    whole = engine.step([2], hidden, start, np.arange(len(ids))[-2:])
    assert np.abs(copied - whole).max() <= 1e-4 * np.abs(whole).max()
    assert (copied.argmax(axis=1) == whole.argmax(axis=1)).all()
