"""The arithmetic of a launch."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import UnsupportedError
from runtime.plugins.launch import Grid

from .fake_cuda import make_launch


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 5, 39, 40, 100, 1000])
def test_the_grid_has_a_tile_for_every_way_to_share_out_the_pairs(num_tokens: int) -> None:
    launch = make_launch()
    variant = launch.variant_for(num_tokens)
    tiles = launch.grid(variant, num_tokens).y
    num_pairs, block = 3 * num_tokens, variant.block_rows
    rng = np.random.default_rng(num_tokens)
    for spread in (0.05, 1.0, 100.0):
        counts = rng.multinomial(num_pairs, rng.dirichlet([spread] * 8), size=200)
        assert (-(-counts // block)).sum(axis=1).max() <= tiles


def test_no_smaller_grid_would_do() -> None:
    launch = make_launch()
    many = launch.variants[1]
    # 7 experts with one pair and one with the rest: 7 + ceil(293 / 64) = 12 tiles.
    assert launch.grid(many, 100) == Grid(2, 12)
    # Each of 6 pairs with another expert.
    assert launch.grid(launch.variants[0], 2) == Grid(5, 6)


def test_grids_count_blocks_of_tokens_or_nothing() -> None:
    launch = make_launch()
    few = launch.variants[0]
    by_tokens = replace(launch, rows="tokens")
    assert [by_tokens.grid(few, n).y for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert replace(launch, rows="one").grid(few, 0) == Grid(5, 1)


@pytest.mark.parametrize(("num_tokens", "index"), [(0, 0), (39, 0), (40, 1), (4096, 1)])
def test_the_number_of_tokens_chooses_the_variant(num_tokens: int, index: int) -> None:
    launch = make_launch()
    assert launch.variant_for(num_tokens) == launch.variants[index]


@pytest.mark.parametrize(
    ("made", "device", "chosen"),
    [
        ((80, 89, 120), 89, 89),
        ((80, 86, 120), 89, 86),
        ((80,), 89, 80),
        ((80, 89), 86, 80),
        ((80, 90), 90, 90),
        ((120, 121), 121, 121),
    ],
)
def test_a_device_gets_its_own_cubin_or_an_older_one_of_its_family(
    made: tuple[int, ...], device: int, chosen: int
) -> None:
    launch = make_launch(made)
    assert launch.cubin_for(launch.variants[0], device).sm == chosen


@pytest.mark.parametrize(
    ("made", "device"),
    [((89,), 86), ((80, 86), 87), ((80, 89), 90), ((120,), 121), ((90,), 100), ((80,), 75)],
)
def test_no_cubin_for_a_device_is_said_with_what_there_is(
    made: tuple[int, ...], device: int
) -> None:
    launch = make_launch(made)
    there = ", ".join(f"sm{sm}" for sm in made)
    expected = f"GroupedUp: .* compiled for {there}, the device is sm{device}; build .* sm{device}"
    with pytest.raises(UnsupportedError, match=expected):
        launch.cubin_for(launch.variants[0], device)
