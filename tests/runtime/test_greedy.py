"""Greedy requests let the engine choose; what they say is what logits would have said."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest

from runtime.generation.batch import Answer, generate_batch
from runtime.generation.generate import generate
from runtime.generation.request import Request
from runtime.generation.sampling import Sampling
from runtime.generation.stopping import GenerationLimits
from tests.runtime.byte_model import (
    CLOSING,
    END,
    OPENING,
    PROMPT,
    TOKENIZER,
    VOCAB,
    make_engine,
    make_prompt,
    make_request,
    result_of,
)
from tests.runtime.fake_engine import FakeEngine, make_limits

THROUGH_LOGITS = Sampling(logprobs=1)
"""Chooses as greedily, but not without logits."""
OTHERS = [
    Sampling(temperature=0.7, seed=3),
    Sampling(repetition_penalty=1.2),
    Sampling(logprobs=2),
]


def random_engine(max_slots: int = 3) -> FakeEngine:
    table = np.random.default_rng(0).standard_normal((64, VOCAB)).astype(np.float32)
    return FakeEngine(table, make_limits(max_tokens=64, max_slots=max_slots))


def test_a_greedy_answer_asks_for_no_logits() -> None:
    engine, request = make_engine([*b"Hello", END], len(PROMPT)), make_request()
    list(generate(engine, TOKENIZER, request))
    assert result_of(request).ids == (*b"Hello", END)
    assert engine.num_logits_given == 0


@pytest.mark.parametrize("sampling", OTHERS, ids=str)
def test_any_other_answer_asks_for_one_row_of_logits_for_a_token(sampling: Sampling) -> None:
    engine, request = random_engine(), make_request(sampling=sampling)
    list(generate(engine, TOKENIZER, request))
    assert engine.num_logits_given == len(result_of(request).ids) > 1


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("Hello", GenerationLimits()),
        ("é北🙂", GenerationLimits(max_new_tokens=4)),
        ("◁think▷wäge◁/think▷Äh", GenerationLimits(max_thinking_tokens=100)),
        ("ab ENDcd", GenerationLimits(stop=("END",))),
        ("", GenerationLimits()),
    ],
)
def test_pieces_and_reasons_are_those_of_an_answer_through_logits(
    text: str, limits: GenerationLimits, chunk: int
) -> None:
    said = []
    for sampling in (Sampling.greedy(), THROUGH_LOGITS):
        engine = make_engine([*text.encode(), END], len(PROMPT), prefill_chunk=chunk)
        request = make_request(limits, sampling=sampling)
        pieces = list(generate(engine, TOKENIZER, request))
        result = result_of(request)
        texts = [(piece.text, piece.channel, piece.token_ids) for piece in pieces]
        said.append((texts, result.ids, result.finish_reason, result.usage, result.cached_tokens))
    assert said[0] == said[1]


def test_a_spent_thinking_budget_forces_the_closing_marker_whatever_the_engine_chose() -> None:
    script = [*"◁think▷abc".encode(), *b"-" * (len(CLOSING) - 1), *b"So", END]
    engine = make_engine(script, len(PROMPT))
    request = make_request(GenerationLimits(max_thinking_tokens=2))
    list(generate(engine, TOKENIZER, request))
    assert result_of(request).ids == (*OPENING, *b"ab", *CLOSING, *b"So", END)
    assert engine.num_logits_given == 0


def test_of_equal_logits_both_ways_take_the_lowest_id() -> None:
    table = np.zeros((64, VOCAB), dtype=np.float32)
    table[:, [ord("q"), ord("b"), ord("x")]] = 1.0
    for sampling in (Sampling.greedy(), THROUGH_LOGITS):
        engine = FakeEngine(table, make_limits(max_tokens=64))
        request = make_request(GenerationLimits(max_new_tokens=3), sampling=sampling)
        list(generate(engine, TOKENIZER, request))
        assert result_of(request).ids == tuple(b"bbb")


def requests_of(samplings: Sequence[Sampling]) -> Iterator[Request]:
    """Requests of different lengths, so that they join and leave at different times."""
    for place, sampling in enumerate(samplings):
        prompt = make_prompt(*range(3 + 4 * place))
        limits = GenerationLimits(max_new_tokens=5 + 3 * (place % 3))
        yield make_request(limits, prompt=prompt, sampling=sampling)


def answers_of(engine: FakeEngine, requests: Sequence[Request]) -> list[Answer]:
    found = list(generate_batch(engine, TOKENIZER, requests))
    return sorted(found, key=lambda answer: answer.index)


@pytest.mark.parametrize("max_slots", [1, 2, 4])
def test_mixed_requests_together_say_what_each_says_alone(max_slots: int) -> None:
    samplings = [kind for kind, _ in product([Sampling.greedy(), *OTHERS], range(2))]
    samplings = [samplings[place] for place in np.random.default_rng(1).permutation(8)]
    together = answers_of(random_engine(max_slots), list(requests_of(samplings)))
    for answer, request in zip(together, requests_of(samplings), strict=True):
        (alone,) = answers_of(random_engine(), [request])
        streamed = make_request(request.limits, prompt=request.prompt, sampling=request.sampling)
        list(generate(random_engine(), TOKENIZER, streamed))
        assert answer.ids == alone.ids == result_of(streamed).ids
        assert (answer.text, answer.thinking) == (alone.text, alone.thinking)


def test_a_batch_gives_logits_only_while_a_request_in_it_needs_them() -> None:
    engine = random_engine()
    answers_of(engine, list(requests_of([Sampling.greedy()] * 3)))
    assert engine.num_logits_given == 0
    (needy, *_) = answers_of(engine, list(requests_of([THROUGH_LOGITS, *[Sampling.greedy()] * 2])))
    # Its prefill gives one row; while it is decoded, all three slots do.
    assert engine.num_logits_given == 1 + 3 * (len(needy.ids) - 1)
