"""Bytes and products of each form, by hand and by search."""

import pytest

from engines.trt.passes.expert_costs import ExpertStack
from engines.trt.passes.options import ExpertsForm

NUMBERS = 3 * 2048 * 1408
"""Of one expert of the released models."""
FORMS: tuple[ExpertsForm, ...] = ("gather", "dense", "conditional", "plugin")


def stack(bits: float) -> ExpertStack:
    return ExpertStack(
        num_experts=64,
        num_chosen=6,
        numbers=NUMBERS,
        stored_bytes=int(NUMBERS * bits / 8),
        number_bytes=2,
    )


BITS = [16, 8.01, 4.125]


def test_one_token_of_a_plain_layer_by_hand() -> None:
    plain = stack(16)
    assert plain.moved_bytes("gather", 1) == 6 * 3 * 2 * NUMBERS  # read, written, read again
    assert plain.moved_bytes("dense", 1) == 64 * 2 * NUMBERS
    assert plain.moved_bytes("plugin", 1) == 6 * 2 * NUMBERS
    assert plain.flops("gather", 1) == plain.flops("plugin", 1) == 2 * 6 * NUMBERS
    assert plain.flops("dense", 1) == 2 * 64 * NUMBERS


def test_kernels_read_no_expert_twice() -> None:
    assert stack(16).moved_bytes("plugin", 500) == 64 * 2 * NUMBERS


@pytest.mark.parametrize("bits", BITS)
def test_the_conditional_form_moves_the_fewer_bytes_of_its_two(bits: float) -> None:
    one = stack(bits)
    for tokens in range(1, 40):
        both = [one.moved_bytes("gather", tokens), one.moved_bytes("dense", tokens)]
        assert one.moved_bytes("conditional", tokens) == min(both)


@pytest.mark.parametrize("bits", BITS)
def test_the_chosen_form_moves_the_fewest_bytes(bits: float) -> None:
    one = stack(bits)
    for tokens in (1, 2, 3, 4, 8, 64, 512):
        fewest = min(one.moved_bytes(form, tokens) for form in FORMS)
        assert one.moved_bytes(one.best_form(tokens, FORMS), tokens) == fewest


def test_of_equal_bytes_the_form_that_computes_less_is_chosen() -> None:
    assert stack(16).best_form(100, ("dense", "plugin")) == "plugin"


@pytest.mark.parametrize(("bits", "most"), [(16, 21), (8.01, 12), (4.125, 7)])
def test_gathering_pays_for_few_pairs_and_fewer_of_narrow_codes(bits: float, most: int) -> None:
    one = stack(bits)
    assert one.most_gathered == most
    gathered = one.moved_bytes("gather", 1) // 6
    assert most * gathered < one.moved_bytes("dense", 1) <= (most + 1) * gathered
