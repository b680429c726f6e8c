"""Which limits the sizes that were given make, with what the target was built for before."""

from dataclasses import replace

import pytest

from engines.cache_layout import cache_record
from engines.options import MAX_CACHE_BYTES, BuildOptions, check_cache
from engines.trt.shapes import aligned_limits, limits_before_alignment
from runtime.config import KimiVLConfig
from runtime.errors import CapacityError, InputError
from runtime.limits import Limits
from runtime.prompt.patches import ImageRule, max_patches
from tests.doubles import make_small_config

RULE = ImageRule(in_token_limit=64, patch_size=14, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LARGEST = max_patches(RULE)
CONFIG: KimiVLConfig = make_small_config()
POSITIONS = CONFIG.decoder.max_positions
FORMER = Limits(max_tokens=100, max_input_tokens=60, max_slots=3, max_patches=16, prefill_chunk=8)


def limits(options: BuildOptions, former: Limits | None = None) -> Limits:
    return options.limits(CONFIG, RULE, former)


def test_a_first_build_has_the_defaults_as_far_as_the_model_allows() -> None:
    assert limits(BuildOptions()) == Limits(
        max_tokens=POSITIONS,
        max_input_tokens=POSITIONS,
        max_slots=1,
        max_patches=LARGEST,
        prefill_chunk=512,
    )
    assert limits(BuildOptions(max_tokens=100)).prefill_chunk == 100


def test_what_is_left_out_stays_and_what_is_given_changes() -> None:
    assert limits(BuildOptions(), FORMER) == FORMER
    assert limits(BuildOptions(max_slots=7), FORMER) == replace(FORMER, max_slots=7)
    assert limits(BuildOptions(max_image_tokens=2), FORMER) == replace(FORMER, max_patches=8)
    assert limits(BuildOptions(max_tokens=400), FORMER) == replace(FORMER, max_tokens=400)


def test_images_that_are_kept_are_cut_to_the_rule() -> None:
    large = replace(FORMER, max_patches=LARGEST + 4)
    assert limits(BuildOptions(), large).max_patches == LARGEST


def test_what_is_kept_is_cut_to_a_smaller_cache() -> None:
    smaller = limits(BuildOptions(max_tokens=6), FORMER)
    assert (smaller.max_tokens, smaller.max_input_tokens, smaller.prefill_chunk) == (6, 6, 6)


def test_a_prompt_that_could_fill_the_cache_can_fill_a_larger_one() -> None:
    whole = limits(BuildOptions(max_tokens=100))
    assert limits(BuildOptions(max_tokens=POSITIONS), whole) == limits(BuildOptions())


@pytest.mark.parametrize("tokens", [300, 304, 77])
def test_plans_keep_their_limits_though_their_capacity_was_raised(tokens: int) -> None:
    cache = cache_record(CONFIG.decoder, None, "bf16")

    def build(options: BuildOptions, former: Limits | None = None) -> Limits:
        asked = None if former is None else limits_before_alignment(former, cache)
        return aligned_limits(limits(options, asked), cache)

    first = build(BuildOptions(max_tokens=tokens))
    assert first.max_tokens % 16 == 0
    assert build(BuildOptions(), first) == first
    assert build(BuildOptions(max_tokens=tokens), first) == first
    assert build(BuildOptions(max_tokens=POSITIONS), first) == build(BuildOptions())
    short = build(BuildOptions(max_tokens=tokens, max_input_tokens=9))
    assert build(BuildOptions(max_slots=2), short) == replace(short, max_slots=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(max_tokens=100, prefill_chunk=101), "use --prefill-chunk 100 or less"),
        (
            BuildOptions(max_image_tokens=LARGEST // 4 + 1),
            f"use --max-image-tokens {LARGEST // 4} or less",
        ),
        (BuildOptions(max_tokens=9, max_input_tokens=99, prefill_chunk=99), "2 problems"),
        (BuildOptions(max_slots=0), "max_slots must be at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_with_what_would(
    options: BuildOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        limits(options)


def test_a_cache_that_no_machine_holds_is_refused_with_its_size() -> None:
    token_bytes = MAX_CACHE_BYTES // (FORMER.max_tokens * FORMER.max_slots)
    check_cache(FORMER, token_bytes)
    with pytest.raises(CapacityError, match=r"3 x 100 tokens needs 1,000\.0 GB"):
        check_cache(FORMER, token_bytes + 1)
