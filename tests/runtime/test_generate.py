"""The loop around an engine: limits, images, prefill, slots, cancelling, errors, timings."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import CapacityError, InputError, NumericError
from runtime.generation.channels import Piece
from runtime.generation.generate import generate
from runtime.generation.request import Request
from runtime.generation.sampling import Sampling
from runtime.generation.stopping import GenerationLimits
from runtime.prompt.patches import PatchedImage
from tests.runtime.byte_model import (
    CLOSING,
    END,
    MEDIA,
    PROMPT,
    TOKENIZER,
    VOCAB,
    ids_of,
    make_engine,
    make_image,
    make_prompt,
    make_request,
    result_of,
    text_of,
)
from tests.runtime.fake_engine import FakeEngine, StepCall, make_limits, scripted_table


def test_a_stop_id_that_is_ordinary_text_is_not_shown_either() -> None:
    request = Request(PROMPT, stop_ids=frozenset({ord("!")}))
    pieces = list(generate(make_engine(b"No! x", len(PROMPT)), TOKENIZER, request))
    assert (text_of(pieces), result_of(request).ids) == ("No", tuple(b"No!"))


def test_the_slot_holds_the_prompt_and_all_new_tokens_but_the_last() -> None:
    engine = make_engine([*b"Hello", END], len(PROMPT))
    request = make_request()
    list(generate(engine, TOKENIZER, request, slot=1))
    assert engine.ids_in(1) == [*b"a questionHello"]
    assert engine.ids_in(0) == []
    assert result_of(request).cached_tokens == 15


def test_a_prompt_is_prefilled_in_chunks_and_only_its_last_token_needs_logits() -> None:
    engine = make_engine([END], len(PROMPT), prefill_chunk=4)
    list(generate(engine, TOKENIZER, make_request()))
    assert engine.steps == [
        StepCall((0,), 4, (0,), ()),
        StepCall((0,), 4, (4,), ()),
        StepCall((0,), 2, (8,), (1,)),
    ]


@pytest.mark.parametrize("prefill_chunk", [1, 3, 5, 10, 64])
def test_the_size_of_the_chunks_does_not_matter(prefill_chunk: int) -> None:
    engine = make_engine([*b"Hi", END], len(PROMPT), prefill_chunk=prefill_chunk)
    assert text_of(list(generate(engine, TOKENIZER, make_request()))) == "Hi"
    assert engine.ids_in(0) == [*b"a questionHi"]


def test_a_slot_is_used_again_from_its_beginning() -> None:
    engine = make_engine([*b"Hi", END], len(PROMPT))
    for _ in range(2):
        assert text_of(list(generate(engine, TOKENIZER, make_request()))) == "Hi"
    assert engine.ids_in(0) == [*b"a questionHi"]


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    engine = make_engine([], 1, max_tokens=len(PROMPT))
    message = "10 tokens; .* and 10 tokens with the answer; .*--max-kv-cache-capacity 11 or more"
    with pytest.raises(CapacityError, match=message):
        generate(engine, TOKENIZER, make_request())  # at once, not with the first piece
    assert engine.steps == []


@pytest.mark.parametrize(("max_positions", "is_possible"), [(10, False), (11, True)])
def test_only_what_the_model_takes_is_said_to_be_built(
    max_positions: int, *, is_possible: bool
) -> None:
    prompt = replace(PROMPT, max_positions=max_positions)
    engine = make_engine([], 1, max_tokens=len(PROMPT))
    with pytest.raises(CapacityError) as caught:
        generate(engine, TOKENIZER, Request(prompt, stop_ids=frozenset()))
    assert ("or build with" in str(caught.value)) == is_possible
    assert ("the model takes at most 10" in str(caught.value)) != is_possible


def test_a_prompt_that_leaves_room_for_one_token_gets_one() -> None:
    engine = make_engine(b"xyz"[:1], len(PROMPT), max_tokens=len(PROMPT) + 1)
    request = make_request()
    assert text_of(list(generate(engine, TOKENIZER, request))) == "x"
    assert result_of(request).finish_reason == "length"


def test_a_slot_is_filled_to_its_end_and_not_beyond() -> None:
    engine = make_engine(b"x" * 31, len(PROMPT), max_tokens=40)
    request = make_request(GenerationLimits(max_new_tokens=1000))
    list(generate(engine, TOKENIZER, request))
    assert result_of(request).finish_reason == "length"
    assert len(PROMPT) + len(result_of(request).ids) == 40


@pytest.mark.parametrize(("longest", "is_refused"), [(9, True), (10, False)])
def test_a_prompt_over_the_longest_input_is_refused(longest: int, *, is_refused: bool) -> None:
    limits = make_limits(max_tokens=64, max_input_tokens=longest)
    table = scripted_table([END], prompt_len=len(PROMPT), vocab_size=VOCAB, max_tokens=64)
    engine = FakeEngine(table, limits)
    if is_refused:
        with pytest.raises(CapacityError, match=r"10 tokens; .* at most 9 .*--max-input-len 10 "):
            generate(engine, TOKENIZER, make_request())
    else:
        list(generate(engine, TOKENIZER, make_request()))
        assert engine.ids_in(0) == [*b"a question"]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens"):
        generate(make_engine([], 1), TOKENIZER, make_request(prompt=make_prompt()))


def test_images_over_the_limit_are_all_named_before_anything_is_encoded() -> None:
    images = [make_image(2, 4, 0), make_image(4, 4, 0), make_image(6, 2, 0)]
    prompt = make_prompt(*[MEDIA] * 9, images=images)
    engine = make_engine([END], 9, max_patches=8)
    message = "2 problems: image 1 has 4 x 4 = 16 .*image 2 has 6 x 2 = 12 .*at most 8"
    with pytest.raises(CapacityError, match=message):
        generate(engine, TOKENIZER, make_request(prompt=prompt))
    assert engine.encoded == []


@pytest.mark.parametrize("num_places", [0, 1, 3])
def test_placeholders_must_be_as_many_as_image_tokens(num_places: int) -> None:
    prompt = make_prompt(5, *[MEDIA] * num_places, images=[make_image(2, 4, 0)])
    with pytest.raises(InputError, match=f"expected 2 placeholder .* 1 images, found {num_places}"):
        generate(make_engine([END], 1), TOKENIZER, make_request(prompt=prompt))


def test_an_encoder_that_returns_other_rows_is_caught() -> None:
    class ShortEngine(FakeEngine):
        def encode(self, image: PatchedImage) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            return super().encode(image)[:1]

    good = make_engine([END], 2)
    engine = ShortEngine(np.zeros((256, VOCAB), dtype=np.float32), good.limits)
    prompt = make_prompt(MEDIA, MEDIA, images=[make_image(2, 4, 0)])
    with pytest.raises(InputError, match="expected 1 placeholder ids"):
        list(generate(engine, TOKENIZER, make_request(prompt=prompt)))


def test_image_rows_take_the_places_of_their_placeholders_in_order() -> None:
    images = [make_image(2, 4, 0.25), make_image(2, 2, 0.5)]
    prompt = make_prompt(7, MEDIA, MEDIA, 8, MEDIA, 9, images=images)
    engine = make_engine([END], 6)
    request = make_request(prompt=prompt)
    list(generate(engine, TOKENIZER, request))
    assert engine.ids_in(0) == [7, -1, -2, 8, -1, 9]
    assert engine.slots[0][:, 1].tolist() == [0, 0.25, 0.25, 0, 0.5, 0]
    assert result_of(request).usage.image_tokens == 3


def test_a_request_cancelled_before_it_starts_computes_no_image_and_no_step() -> None:
    engine = make_engine([END], 1)
    request = make_request(prompt=make_prompt(MEDIA, images=[make_image(2, 2, 0)]))
    pieces = generate(engine, TOKENIZER, request)
    request.cancel()
    assert list(pieces) == []
    assert (engine.encoded, engine.steps) == ([], [])
    assert result_of(request).finish_reason == "cancelled"
    assert result_of(request).cached_tokens == 0


def test_a_cancelled_request_ends_after_the_step_that_runs() -> None:
    engine = make_engine(b"Hello", len(PROMPT))
    request = make_request()
    pieces = generate(engine, TOKENIZER, request)
    assert [next(pieces).text, next(pieces).text] == ["H", "e"]
    request.cancel()
    assert list(pieces) == []
    assert result_of(request).finish_reason == "cancelled"
    assert result_of(request).ids == tuple(b"He")
    assert engine.ids_in(0) == [*b"a questionH"]
    assert result_of(request).cached_tokens == 11


def test_cancelling_releases_the_text_that_was_held_back() -> None:
    engine = make_engine(b"xEN", len(PROMPT))
    request = make_request(GenerationLimits(stop=("END", "x!")))

    def step_then_cancel() -> list[Piece]:
        pieces = []
        for piece in generate(engine, TOKENIZER, request):
            pieces.append(piece)
            if piece.text == "x":  # released by E, which is held back itself
                request.cancel()
        return pieces

    assert [piece.text for piece in step_then_cancel()] == ["x", "E"]
    assert result_of(request).ids == tuple(b"xE")


def test_a_prefill_is_cancelled_between_its_chunks() -> None:
    request = make_request()

    class CancellingEngine(FakeEngine):
        def step_greedy(self, *values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
            if len(self.steps) == 1:
                request.cancel()
            return super().step_greedy(*values)  # type: ignore[arg-type]  # handed on unchanged

    engine = CancellingEngine(np.zeros((256, VOCAB), dtype=np.float32), make_limits())
    assert list(generate(engine, TOKENIZER, request)) == []
    assert len(engine.steps) == 2
    assert result_of(request).cached_tokens == 8
    assert result_of(request).ids == ()


def test_closing_the_generator_cancels_the_request() -> None:
    engine = make_engine(b"Hello", len(PROMPT))
    request = make_request()
    pieces = generate(engine, TOKENIZER, request)
    next(pieces)
    pieces.close()
    assert result_of(request).finish_reason == "cancelled"
    assert result_of(request).ids == tuple(b"H")
    assert len(engine.steps) == 3  # the prompt's chunks alone


def test_closing_at_the_last_piece_keeps_the_real_reason() -> None:
    request = make_request(GenerationLimits(max_new_tokens=1))
    pieces = generate(make_engine(b"H", len(PROMPT)), TOKENIZER, request)
    next(pieces)
    pieces.close()
    assert result_of(request).finish_reason == "length"


def test_a_numeric_error_ends_the_generator_and_leaves_no_result() -> None:
    engine = make_engine(b"He", len(PROMPT))  # the row behind "e" is NaN
    request = make_request()
    pieces = generate(engine, TOKENIZER, request)
    assert [next(pieces).text, next(pieces).text] == ["H", "e"]
    with pytest.raises(NumericError, match="not finite"):
        next(pieces)
    assert list(pieces) == []
    assert request.result is None
    again = make_request(GenerationLimits(max_new_tokens=2))
    assert text_of(list(generate(engine, TOKENIZER, again))) == "He"


def test_log_probabilities_come_with_every_token_when_asked_for() -> None:
    script = [*"◁think▷abcd".encode(), *b"-" * len(CLOSING), END]
    request = make_request(GenerationLimits(max_thinking_tokens=4), sampling=Sampling(logprobs=2))
    pieces = list(generate(make_engine(script, len(PROMPT)), TOKENIZER, request))
    logprobs = [value for piece in pieces for value in piece.logprobs]
    # One logit of 10 among zeros; the forced tokens are not what the model wanted.
    said = -math.log1p((VOCAB - 1) * math.exp(-10))
    wanted = [token == scripted for token, scripted in zip(ids_of(pieces), script, strict=True)]
    assert wanted.count(False) == len(CLOSING)
    expected = [said if is_wanted else said - 10 for is_wanted in wanted]
    assert logprobs == pytest.approx(expected, abs=1e-6)
    assert all(len(choice.top) == 2 for piece in pieces for choice in piece.choices)


def test_timings_fit_together_and_leave_out_the_consumer() -> None:
    request = make_request(prompt=make_prompt(7, MEDIA, images=[make_image(2, 2, 0)]))
    for _ in generate(make_engine([*b"Hello", END], 2), TOKENIZER, request):
        time.sleep(0.1)  # the steps of a table take less than a thousandth of this
    timings = result_of(request).timings
    assert min(timings.encode_s, timings.prefill_s, timings.decode_s) > 0
    assert timings.encode_s + timings.prefill_s <= timings.time_to_first_token_s
    assert timings.decode_s < 0.1
    assert timings.decode_tokens_per_s == pytest.approx(5 / timings.decode_s)


def test_a_request_runs_once() -> None:
    engine = make_engine([END], len(PROMPT))
    request = make_request()
    list(generate(engine, TOKENIZER, request))
    with pytest.raises(ValueError, match="make a new one"):
        generate(engine, TOKENIZER, request)
