"""The plain functions under the generation loop, and decoding without that loop."""

import numpy as np
import pytest

from runtime.engine.protocol import FloatArray
from runtime.generation.decoding import Decoding
from runtime.generation.request import Request
from runtime.generation.sampling import Sampling
from runtime.generation.steps import decode_step, embed_prompt, prefill, prefill_logits
from runtime.prompt.encoder import Prompt
from runtime.prompt.patches import PatchedImage
from runtime.prompt.tokenizer import Tokenizer
from tests.runtime.fake_engine import FakeEngine, make_limits

VOCAB, MEDIA, END = 258, 257, 256
TOKENIZER = Tokenizer(
    {bytes([value]): value for value in range(256)}, {"<|im_end|>": END, "<|media_pad|>": MEDIA}
)


def random_table(max_tokens: int = 64) -> FloatArray:
    return np.random.default_rng(0).standard_normal((max_tokens, VOCAB)).astype(np.float32)


def make_engine() -> FakeEngine:
    return FakeEngine(random_table(), make_limits(max_tokens=64, max_slots=3))


def embedded(engine: FakeEngine, num_tokens: int) -> FloatArray:
    return engine.embed(np.arange(num_tokens))


def make_request(num_tokens: int, seed: int) -> Request:
    prompt = Prompt(ids=np.arange(num_tokens), images=(), media_token_id=MEDIA)
    return Request(prompt, stop_ids=frozenset({END}), sampling=Sampling(temperature=1.0, seed=seed))


def test_an_embedded_prompt_has_image_rows_in_the_placeholders_places() -> None:
    image = PatchedImage(patches=np.full((2, 4, 12), 0.5, dtype=np.float32))
    prompt = Prompt(ids=np.array([3, MEDIA, MEDIA, 4]), images=(image,), media_token_id=MEDIA)
    rows = embed_prompt(make_engine(), prompt)
    assert rows.tolist() == [[3, 0], [-1, 0.5], [-2, 0.5], [4, 0]]


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_a_prefill_gives_the_last_row_of_all_logits(chunk: int) -> None:
    engine = make_engine()
    hidden = embedded(engine, 7)
    every = prefill_logits(engine, 0, hidden, 0, chunk)
    assert (every == random_table()[:7]).all()
    assert (prefill(engine.step, 1, hidden, 0, chunk) == every[-1:]).all()
    assert engine.ids_in(0) == engine.ids_in(1) == list(range(7))


def test_a_prefill_goes_on_behind_what_is_cached() -> None:
    engine = make_engine()
    hidden = embedded(engine, 9)
    prefill(engine.step, 0, hidden[:4], 0, 3)
    assert (prefill(engine.step, 0, hidden[4:], 4, 3) == random_table()[8]).all()
    assert engine.ids_in(0) == list(range(9))


def test_one_decode_step_serves_several_slots_of_different_lengths() -> None:
    engine = make_engine()
    prefill(engine.step, 0, embedded(engine, 5), 0, 8)
    prefill(engine.step, 2, embedded(engine, 3), 0, 8)
    logits = decode_step(engine, engine.step, [2, 0], [40, 50], [3, 5])
    assert (logits == random_table()[[3, 5]]).all()
    assert engine.ids_in(2) == [0, 1, 2, 40]
    assert engine.ids_in(0) == [0, 1, 2, 3, 4, 50]


def test_sequences_decoded_together_say_what_they_say_alone() -> None:
    def decode(lengths: dict[int, int]) -> dict[int, list[int]]:
        """Decode 20 tokens in each slot, whose prompts have the given lengths."""
        engine = make_engine()
        last = {
            slot: prefill(engine.step, slot, embedded(engine, num_tokens), 0, 4)[0]
            for slot, num_tokens in lengths.items()
        }
        states = {
            slot: Decoding(make_request(num_tokens, seed=slot), TOKENIZER, room=20)
            for slot, num_tokens in lengths.items()
        }
        cached = dict(lengths)
        while any(state.finish_reason is None for state in states.values()):
            for slot in [slot for slot in states if states[slot].finish_reason is None]:
                states[slot].push(last[slot])
            active = [slot for slot in states if states[slot].finish_reason is None]
            if active:
                logits = decode_step(
                    engine,
                    engine.step,
                    active,
                    [states[slot].ids[-1] for slot in active],
                    [cached[slot] for slot in active],
                )
                for slot, row in zip(active, logits, strict=True):
                    last[slot] = row
                    cached[slot] += 1
        return {slot: state.ids for slot, state in states.items()}

    together = decode({0: 3, 1: 8, 2: 5})
    alone = {slot: decode({slot: size})[slot] for slot, size in [(0, 3), (1, 8), (2, 5)]}
    assert together == alone
    assert len({tuple(ids) for ids in together.values()}) == 3
