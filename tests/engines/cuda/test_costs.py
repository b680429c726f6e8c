"""What target `cuda` is told to take: arithmetic on the released sizes."""

from dataclasses import replace

import pytest

from engines.cuda.costs import build_cost, device_memory
from engines.options import BuildOptions
from engines.plan import make_plan
from engines.work import Work
from export.recipe.reading import load_recipe
from runtime.limits import Limits
from tests.engines.test_costs import FULL, RULE

ALL_LAYERS = tuple(range(27))


def work(recipe: str, options: BuildOptions | None = None) -> Work:
    limits: Limits = (options or BuildOptions()).limits(FULL, RULE)
    return Work(config=FULL, recipe=load_recipe(recipe), layers=ALL_LAYERS, limits=limits)


def test_codes_in_blocks_take_what_they_take_on_target_cpu() -> None:
    # `LOWERED` of target `cpu`, whose projector and tower are blocks as well: 432.5 + 31.2 MB.
    left = build_cost(work("int4")).left_bytes
    experts = 26 * 64 * 3 * 2048 * 1408 // 2 * (1 + 2 / 64)  # a scale of 2 bytes for 128 codes
    assert experts < left < experts + 1.6e9


def test_experts_that_are_not_quantised_are_written_once_more() -> None:
    assert build_cost(work("bf16")).left_bytes == 26 * 64 * 3 * 2048 * 1408 * 2


@pytest.mark.parametrize(
    ("recipe", "weights"), [("int4", 15.8e9), ("int8", 30.8e9), ("bf16", 32.1e9)]
)
def test_the_memory_of_the_card_is_weights_cache_scores_and_rows(
    recipe: str, weights: float
) -> None:
    options = BuildOptions(max_tokens=8192, max_slots=32, prefill_chunk=512)
    plan = make_plan(work(recipe, options), "cuda")
    assert plan.device is not None
    memory = plan.device
    assert memory.weights_bytes == pytest.approx(weights, rel=0.03)
    assert memory.cache_bytes == 32 * 8192 * 27 * 576 * 2
    patches = work(recipe, options).limits.max_patches
    assert memory.scratch_bytes == 3 * 2 * 512 * 16 * 8192 + 130 * 1152 * patches
    assert memory.code_bytes == 0
    assert memory == device_memory(work(recipe, options), memory.cache_bytes)


def test_shared_experts_among_the_routed_ones_are_kept_twice_as_well() -> None:
    whole = work("int4")
    one_by_one = replace(whole.recipe.parts["shared_experts"].weights, group=64)
    part = replace(whole.recipe.parts["shared_experts"], weights=one_by_one)
    apart = {**whole.recipe.parts, "shared_experts": part}
    beside = replace(whole, recipe=replace(whole.recipe, parts=apart))
    more = device_memory(whole, 0).weights_bytes - device_memory(beside, 0).weights_bytes
    shared = 26 * 3 * 2048 * 2816
    # Codes of 4 bits once more; a scale of 2 bytes for 128 of them and not for 64.
    assert more == shared // 2 - 2 * shared // 128


def test_experts_whose_codes_no_operator_takes_are_folded_when_they_are_loaded() -> None:
    narrow = work("int4")
    wide = replace(narrow, recipe=replace(narrow.recipe, base="fp32"))
    experts = 26 * 64 * 3 * 2048 * 1408
    assert build_cost(narrow).left_bytes - build_cost(wide).left_bytes > experts // 2
    more = device_memory(wide, 0).weights_bytes - device_memory(narrow, 0).weights_bytes
    # Codes twice, with scales of 2 bytes for 128 of them, against numbers of 4 bytes.
    assert more == pytest.approx(experts * (4 - 2 / 2 - 2 / 128), rel=0.03)


def test_a_plan_has_a_build_and_no_figures_of_speed() -> None:
    plan = make_plan(work("int4"), "cuda")
    assert [stage.stage for stage in plan.stages] == ["calibrate", "build"]
    assert (plan.speeds, plan.experts, plan.refusals) == ((), (), ())
    refused = make_plan(work("fp8"), "cuda")
    assert refused.refusals
