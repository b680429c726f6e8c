"""Profiles by numbers: the released sizes, and every grid that an image may have."""

from itertools import product

import pytest

from engines.trt.profiles import (
    Shapes,
    decoder_profiles,
    head_profiles,
    longest_side,
    projector_profile,
    usual_shapes,
    vision_bands,
    vision_box,
)
from runtime import names
from runtime.config import VisionConfig
from runtime.limits import Limits
from runtime.prompt.patches import ImageRule, max_patches

MOONVIT = VisionConfig(
    patch_size=14,
    num_heads=16,
    num_layers=27,
    width=1152,
    mlp_width=4304,
    table_height=64,
    table_width=64,
    merge=2,
)
LARGEST = 17_856
LIMITS = Limits(
    max_tokens=8192, max_input_tokens=8192, max_slots=4, max_patches=LARGEST, prefill_chunk=512
)
CACHE = {names.CACHE: 576}
INT8_CACHE = {names.CACHE: 512, "cache_keys": 64}


def takes(shapes: Shapes, h: int, w: int) -> bool:
    least, _, most = shapes[names.PATCHES]
    return least[0] <= h <= most[0] and least[1] <= w <= most[1]


def grids(max_patches: int) -> list[tuple[int, int]]:
    return [(h, w) for h, w in product(range(2, 511, 2), repeat=2) if h * w <= max_patches]


def test_the_box_goes_to_the_longest_side_not_to_the_largest_square() -> None:
    shapes = vision_box(MOONVIT, LARGEST)
    assert shapes[names.PATCHES] == ((2, 2, 588), (64, 64, 588), (510, 510, 588))
    assert shapes[names.ROW_WEIGHTS] == ((2, 64), (64, 64), (510, 64))
    assert shapes[names.COLUMN_WEIGHTS] == ((2, 64), (64, 64), (510, 64))


@pytest.mark.parametrize(
    ("max_patches", "side"),
    [(4, 2), (7, 2), (8, 4), (100, 50), (1018, 508), (1020, 510), (LARGEST, 510)],
)
def test_a_side_is_half_the_patches_until_the_rotation_ends(max_patches: int, side: int) -> None:
    assert longest_side(max_patches) == side
    assert max(h for h, _ in grids(max_patches)) == side


@pytest.mark.parametrize("limit", [4, 36, 400, 4096, LARGEST])
@pytest.mark.parametrize("waste", [2, 3.5])
def test_bands_hold_every_grid_and_none_is_much_larger_than_the_limit(
    limit: int, waste: float
) -> None:
    bands = vision_bands(MOONVIT, limit, waste)
    for h, w in grids(limit):
        assert sum(takes(band, h, w) for band in bands) == 1, (h, w)
    for band in bands:
        height, width, _ = band[names.PATCHES].max
        assert height * width <= waste * limit
        assert band[names.ROW_WEIGHTS].max == (height, 64)
        assert band[names.COLUMN_WEIGHTS].max == (width, 64)


def test_the_released_sizes_take_four_bands_where_a_box_wastes_fourteen_fold() -> None:
    largest = [band[names.PATCHES].max[:2] for band in vision_bands(MOONVIT, LARGEST, 2)]
    assert largest == [(70, 510), (144, 248), (292, 122), (510, 60)]
    assert round(510 * 510 / LARGEST, 1) == 14.6


@pytest.mark.parametrize("limit", [4, 8, 36, 1000, 4096, LARGEST])
def test_the_usual_grid_is_one_that_an_image_has(limit: int) -> None:
    for shapes in (vision_box(MOONVIT, limit), *vision_bands(MOONVIT, limit, 2)):
        h, w, _ = shapes[names.PATCHES].opt
        assert takes(shapes, h, w)
        assert h % 2 == w % 2 == 0
        assert h * w <= limit


def test_the_projector_takes_what_the_largest_image_makes() -> None:
    half = (0.5, 0.5, 0.5)
    rule = ImageRule(in_token_limit=16_384, patch_size=14, mean=half, std=half)
    assert max_patches(rule) == LARGEST  # padding leads over the rule's own limit
    assert projector_profile(MOONVIT, max_patches(rule))[names.MERGED] == (
        (1, 4, 1152),
        (1024, 4, 1152),
        (4464, 4, 1152),
    )
    assert projector_profile(MOONVIT, 4)[names.MERGED].opt == (1, 4, 1152)


def test_decoding_and_prefilling_have_profiles_of_their_own() -> None:
    decode, prefill = decoder_profiles(2048, CACHE, LIMITS, has_window=False)
    assert decode[names.HIDDEN] == ((1, 1, 2048), (4, 1, 2048), (4, 1, 2048))
    assert prefill[names.HIDDEN] == ((1, 1, 2048), (1, 512, 2048), (4, 512, 2048))
    assert decode[names.LENGTHS] == ((1,), (4,), (4,))
    assert prefill[names.LENGTHS] == ((1,), (1,), (4,))
    for shapes in (decode, prefill):
        assert {shape[1:] for shape in shapes[names.CACHE]} == {(1, 8192, 576)}
        assert [shape[0] for shape in shapes[names.CACHE]] == [
            shape[0] for shape in shapes[names.HIDDEN]
        ]


def test_every_cache_tensor_has_shapes() -> None:
    for shapes in decoder_profiles(2048, INT8_CACHE, LIMITS, has_window=True):
        assert shapes[names.CACHE].max == (4, 1, 8192, 512)
        assert shapes["cache_keys"].max == (4, 1, 8192, 64)


def test_a_window_may_be_as_long_as_the_cache() -> None:
    with_window = decoder_profiles(2048, CACHE, LIMITS, has_window=True)
    without = decoder_profiles(2048, CACHE, LIMITS, has_window=False)
    for shapes, plain in zip(with_window, without, strict=True):
        assert shapes == {**plain, names.WINDOW: ((1,), (1024,), (8192,))}


def test_one_token_at_a_time_needs_one_profile() -> None:
    limits = Limits(max_tokens=8, max_input_tokens=8, max_slots=1, max_patches=4, prefill_chunk=1)
    (shapes,) = decoder_profiles(2048, CACHE, limits, has_window=True)
    assert shapes[names.WINDOW] == ((1,), (8,), (8,))
    assert len(head_profiles(2048, limits)) == 1


def test_the_head_gives_logits_of_a_whole_chunk_but_not_of_all_slots() -> None:
    decode, prefill = head_profiles(2048, LIMITS)
    assert decode[names.ROWS] == ((1,), (4,), (4,))
    assert prefill[names.ROWS] == ((1,), (1,), (512,))
    assert prefill[names.HIDDEN] == ((1, 1, 2048), (1, 512, 2048), (4, 512, 2048))
    assert usual_shapes(prefill) == {names.HIDDEN: (1, 512, 2048), names.ROWS: (1,)}
