"""The same tokens in another order of work give the same logits: chunks, slots, prefixes."""

import numpy as np
import pytest

from calibration.parity import relative_error
from calibration.tolerances import EXACT, SAME_GRAPH
from runtime import Prompt
from runtime.engine.protocol import FloatArray
from runtime.generation.steps import embed_prompt, prefill_logits

from .conftest import PREFILL_CHUNK, Compiled, make_prompt


def logits_in_chunks(compiled: Compiled, prompt: Prompt, chunk: int, slot: int = 0) -> FloatArray:
    engine = compiled.session.engine
    return prefill_logits(engine, slot, embed_prompt(engine, prompt), 0, chunk)


@pytest.mark.parametrize("chunk", [1, 2, 7, PREFILL_CHUNK])
def test_any_chunking_equals_one_piece(fp32: Compiled, chunk: int) -> None:
    prompt = make_prompt(fp32.session, [(131, 45)], "a prompt in pieces")
    whole = logits_in_chunks(fp32, prompt, len(prompt))
    assert relative_error(logits_in_chunks(fp32, prompt, chunk), whole) <= SAME_GRAPH


def test_slots_of_different_length_in_one_batch_equal_each_alone(fp32: Compiled) -> None:
    engine = fp32.session.engine
    texts = ["short", "a much longer prompt than the first one", "middle one"]
    prompts = [make_prompt(fp32.session, [], text) for text in texts]
    alone = [logits_in_chunks(fp32, prompt, len(prompt))[-3:] for prompt in prompts]
    order = [2, 0]
    for slot in order:  # all but the last three tokens of each, one after the other
        hidden = embed_prompt(engine, prompts[slot])[:-3]
        engine.step([slot], hidden[None], np.array([0]), np.array([], dtype=np.int64))
    last = np.stack([embed_prompt(engine, prompts[slot])[-3:] for slot in order])
    lengths = np.array([len(prompts[slot]) - 3 for slot in order])
    together = engine.step(order, last, lengths, np.arange(6)).reshape(2, 3, -1)
    for row, slot in enumerate(order):
        assert relative_error(together[row], alone[slot]) <= SAME_GRAPH


def test_a_slot_is_not_disturbed_by_others(fp32: Compiled) -> None:
    first = make_prompt(fp32.session, [], "first")
    before = logits_in_chunks(fp32, first, 4, slot=1)
    logits_in_chunks(fp32, make_prompt(fp32.session, [], "quite another text"), 4, slot=0)
    logits_in_chunks(fp32, make_prompt(fp32.session, [], "and a third"), 4, slot=2)
    hidden = embed_prompt(fp32.session.engine, first)
    again = fp32.session.engine.step(
        [1], hidden[None, -1:], np.array([len(first) - 1]), np.array([0])
    )
    assert relative_error(again[0], before[-1]) <= SAME_GRAPH


def test_a_copied_prefix_goes_on_like_the_original(fp32: Compiled) -> None:
    engine = fp32.session.engine
    prompt = make_prompt(fp32.session, [(28, 56)], "shared beginning")
    logits_in_chunks(fp32, prompt, len(prompt), slot=0)
    engine.copy_prefix(0, 2, len(prompt))
    word = embed_prompt(engine, make_prompt(fp32.session, [], "x"))[None, :1]
    steps = [engine.step([slot], word, np.array([len(prompt)]), np.array([0])) for slot in (0, 2)]
    assert relative_error(steps[1], steps[0]) <= EXACT


def test_tokens_behind_the_length_are_never_seen(fp32: Compiled) -> None:
    """A slot that held a longer text before answers as if it were new."""
    prompt = make_prompt(fp32.session, [], "short one")
    fresh = logits_in_chunks(fp32, prompt, 4, slot=0)
    logits_in_chunks(fp32, make_prompt(fp32.session, [(131, 45)], "a long one"), 8, slot=0)
    assert relative_error(logits_in_chunks(fp32, prompt, 4, slot=0), fresh) <= EXACT
