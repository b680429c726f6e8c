"""Slots filled and timed through the engine protocol alone, by an engine whose times are known."""

import numpy as np
import pytest

from engines.measure.disturbance import Disturbance
from engines.measure.filled import FilledSlots
from engines.measure.images import ImageSize, choose_sizes, time_image
from engines.measure.rows import Row
from engines.measure.samples import Spread
from engines.measure.timing import TimedRow, time_all
from runtime.errors import CapacityError, InputError
from runtime.prompt.patches import ImageRule
from tests.runtime.fake_engine import make_limits

from .clocked_engine import VOCABULARY, ClockedEngine, Step

RULE = ImageRule(in_token_limit=64, patch_size=14, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def engine() -> ClockedEngine:
    return ClockedEngine(make_limits(max_tokens=64, max_slots=3, prefill_chunk=4))


@pytest.fixture
def slots(engine: ClockedEngine) -> FilledSlots:
    return FilledSlots(engine, vocab_size=VOCABULARY, clock=engine.clock)


def test_decoding_goes_on_behind_a_depth_that_is_filled_in_chunks(
    slots: FilledSlots, engine: ClockedEngine
) -> None:
    seconds = slots.decode(10, 3)
    assert seconds == pytest.approx([1.010, 1.011, 1.012])
    assert engine.steps == [
        *(Step((0,), 4, (0,)), Step((0,), 4, (4,)), Step((0,), 2, (8,))),
        *(Step((0,), 1, (10,)), Step((0,), 1, (11,)), Step((0,), 1, (12,))),
    ]


def test_a_depth_is_filled_once_and_only_beyond_what_is_written(
    slots: FilledSlots, engine: ClockedEngine
) -> None:
    slots.decode(10, 3)
    engine.steps.clear()
    slots.decode(4, 1)
    assert engine.steps == [Step((0,), 1, (4,))]
    slots.prefill(5, depth=14)
    assert engine.steps[1:] == [Step((0,), 1, (13,)), Step((0,), 4, (14,)), Step((0,), 1, (18,))]


def test_a_prompt_is_timed_without_the_filling_before_it(
    slots: FilledSlots, engine: ClockedEngine
) -> None:
    assert slots.prefill(6, depth=8) == pytest.approx(6 + 0.001 * (8 + 12))
    assert engine.now_s == pytest.approx(8 + 0.001 * 4 + 6.020)


def test_slots_that_decode_together_get_copies_of_the_first(
    slots: FilledSlots, engine: ClockedEngine
) -> None:
    assert slots.decode(5, 2, batch=3) == pytest.approx([1.005, 1.006])
    assert engine.copies == [(0, 1, 5), (0, 2, 5)]
    assert engine.steps[-1] == Step((0, 1, 2), 1, (6, 6, 6))


def test_rows_and_images_are_warmed_up_and_repeated(engine: ClockedEngine) -> None:
    rows = [Row(kind="prompt", tokens=8, depth=0), Row(kind="decode", tokens=20, depth=30)]
    told: list[tuple[int, int]] = []
    found = time_all(
        engine,
        rows,
        [ImageSize(28, 56)],
        vocab_size=VOCABULARY,
        rule=RULE,
        repeats=2,
        progress=lambda _, done, total: told.append((done, total)),
        clock=engine.clock,
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    prompt, decode = found.rows
    assert [list(one) for one in prompt.samples_s] == [pytest.approx([8.004])] * 2
    assert [len(one) for one in decode.samples_s] == [20, 20]
    assert sum(step.num_tokens == 1 for step in engine.steps) == 16 + 2 * 20
    (image,) = found.images
    assert (image.patches, image.image_tokens, image.samples_s) == (8, 2, (4.0, 4.0))
    assert engine.num_images == 3
    assert found.disturbance.wall_s >= sum(one.disturbance.wall_s for one in found.rows)


def test_speed_is_over_repeats_and_percentiles_over_all_tokens() -> None:
    timed = TimedRow(
        row=Row(kind="decode", tokens=2, depth=0, batch=3),
        samples_s=((0.1, 0.3), (0.2, 0.4)),
        disturbance=Disturbance(),
    )
    assert timed.tokens_per_s.mean == pytest.approx((6 / 0.4 + 6 / 0.6) / 2)
    assert timed.tokens_per_s.deviation == pytest.approx(5 / 2**0.5)
    assert timed.ms_per_token.mean == pytest.approx(250)
    assert timed.ms_per_token.percentiles["p50"] == pytest.approx(250)


def test_a_spread_is_that_of_numpy_with_the_sample_s_deviation() -> None:
    samples = np.random.default_rng(0).gamma(2.0, size=101).tolist()
    found = Spread.of(samples)
    assert found.mean == pytest.approx(np.mean(samples))
    assert found.deviation == pytest.approx(np.std(samples, ddof=1))
    assert list(found.percentiles.values()) == pytest.approx(
        [sorted(samples)[50], sorted(samples)[90], sorted(samples)[99]]
    )
    alone = Spread.of([3.0]).fields()
    assert alone == {"mean": 3.0, "deviation": 0.0, "p50": 3.0, "p90": 3.0, "p99": 3.0}


def test_an_image_is_patched_outside_of_what_is_timed(engine: ClockedEngine) -> None:
    found = time_image(engine, RULE, ImageSize(56, 56), 3, clock=engine.clock)
    assert found.samples_s == (8.0, 8.0, 8.0)
    assert found.patch_s == 0.0


def test_usual_images_that_do_not_fit_are_left_out_and_asked_ones_refused() -> None:
    rule = ImageRule(in_token_limit=4096, patch_size=14, mean=RULE.mean, std=RULE.std)
    chosen = choose_sizes(None, rule, make_limits(max_patches=1024))
    assert chosen.sizes == [ImageSize(448, 448)]
    (phrase,) = chosen.left_out
    assert phrase.startswith("vit 1920x1080: it makes 4128 patches and the engine takes 1024")
    with pytest.raises(CapacityError, match=r"--images 462x448 .*--max-image-tokens 272 for more"):
        choose_sizes([ImageSize(462, 448)], rule, make_limits(max_patches=1024))
    with pytest.raises(CapacityError, match="at most 64,000,000 pixels"):
        choose_sizes([ImageSize(9999, 9999)], rule, make_limits())


@pytest.mark.parametrize("text", ["448", "448x", "0x448", "448X448", "-1x5", ""])
def test_a_size_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--images: expected sizes such as 448x448"):
        ImageSize.from_text(text)
    assert ImageSize.from_text(" 640x480") == (640, 480)
