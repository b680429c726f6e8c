"""Which rows a benchmark has: crossed, named, left out or refused."""

import pytest

from engines.measure.rows import Row, Wanted, choose_rows
from runtime.errors import CapacityError, InputError
from tests.runtime.fake_engine import make_limits

POSITIONS = 1 << 17


def test_the_usual_rows_are_those_of_llama_bench_by_rising_depth() -> None:
    chosen = choose_rows(Wanted(), make_limits(max_tokens=9216), POSITIONS)
    assert [row.name for row in chosen.rows] == [
        *("pp512", "tg128", "pp512 @ d1024", "tg128 @ d1024"),
        *("pp512 @ d4096", "tg128 @ d4096", "pp512 @ d8192", "tg128 @ d8192"),
    ]
    assert chosen.left_out == []


def test_usual_rows_that_do_not_fit_are_left_out_and_named_by_their_limit() -> None:
    limits = make_limits(max_tokens=1200, max_input_tokens=500)
    chosen = choose_rows(Wanted(), limits, POSITIONS)
    assert [row.name for row in chosen.rows] == ["tg128", "tg128 @ d1024"]
    assert sorted(chosen.left_out) == [
        "pp512 @ d1024, pp512 @ d4096, tg128 @ d4096, pp512 @ d8192, tg128 @ d8192: the cache "
        "takes 1200 tokens",
        "pp512: prompts have at most 500 tokens",
    ]


def test_slots_that_decode_together_are_in_the_name() -> None:
    wanted = Wanted(prompts=(0,), decodes=(8,), depths=(16, 0), batches=(1, 2))
    chosen = choose_rows(wanted, make_limits(max_slots=2), POSITIONS)
    names = ["tg8", "tg8 x2", "tg8 @ d16", "tg8 x2 @ d16"]
    assert [row.name for row in chosen.rows] == names


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(depths=(0, 250)), r"--depths 250 does not fit: tg128 @ d250 needs 378 tokens"),
        (Wanted(prompts=(300,)), r"--prompt-tokens 300 .*--max-kv-cache-capacity 300$"),
        (Wanted(decodes=(64, 257)), r"--decode-tokens 257 .*the cache takes 256 tokens"),
        (Wanted(batches=(3,)), r"--batch-sizes 3 .*in 3 slots and there are 2 slots; .*size 3$"),
        (Wanted(prompts=(0,), depths=(9000,)), r"--depths 9000 does not fit"),
    ],
)
def test_a_number_that_was_asked_for_and_does_not_fit_is_refused(
    wanted: Wanted, message: str
) -> None:
    with pytest.raises(CapacityError, match=message):
        choose_rows(wanted, make_limits(max_tokens=256, max_slots=2), POSITIONS)


def test_what_the_model_does_not_take_is_not_built_for() -> None:
    wanted = Wanted(prompts=(301,), depths=(0,))
    with pytest.raises(CapacityError, match=r"; ask for less: the model takes at most 300$"):
        choose_rows(wanted, make_limits(max_tokens=256), 300)


def test_a_number_that_fits_at_one_depth_is_kept_there() -> None:
    wanted = Wanted(prompts=(200,), decodes=(16,), depths=(0, 100))
    chosen = choose_rows(wanted, make_limits(max_tokens=256), POSITIONS)
    assert [row.name for row in chosen.rows] == ["pp200", "tg16", "tg16 @ d100"]
    assert chosen.left_out == ["pp200 @ d100: the cache takes 256 tokens"]


def test_an_artifact_that_no_usual_row_fits_is_refused() -> None:
    with pytest.raises(CapacityError, match=r"nothing fits: tg128 needs 128 .*capacity 128$"):
        choose_rows(Wanted(), make_limits(max_tokens=100), POSITIONS)


@pytest.mark.parametrize(
    ("wanted", "flag"), [(Wanted(depths=(-1,)), "depths"), (Wanted(batches=(0,)), "batch-sizes")]
)
def test_numbers_below_what_they_count_are_refused(wanted: Wanted, flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag}: expected numbers from"):
        choose_rows(wanted, make_limits(), POSITIONS)


def test_a_row_that_ends_with_the_cache_fits() -> None:
    limits = make_limits(max_tokens=256)
    assert Row(kind="decode", tokens=56, depth=200).misfit(limits, POSITIONS) is None
    assert Row(kind="decode", tokens=57, depth=200).misfit(limits, POSITIONS) is not None
