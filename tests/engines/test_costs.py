"""The estimates beside the runs that they come from, and the relations that must hold."""

from dataclasses import replace

import pytest

from engines.costs import StageCost, artifact_cost, cpu_costs, cpu_speed
from engines.options import BuildOptions
from engines.plan import cache_size, make_plan
from engines.targets import TARGETS
from engines.work import SampleCount, Work
from export.recipe.reading import load_recipe, recipe_names
from export.recipe.sizes import parameters, total_size
from export.synthetic.configs import CONFIGS
from runtime.config import KimiVLConfig
from runtime.prompt.patches import ImageRule

FULL = KimiVLConfig.from_fields(CONFIGS["full"])
HALF = (0.5, 0.5, 0.5)
RULE = ImageRule(in_token_limit=4096, patch_size=14, mean=HALF, std=HALF)
LARGER_RULE = replace(RULE, in_token_limit=16384)
ALL_LAYERS = tuple(range(27))
TWO_LAYERS = (0, 1)
MEASURED_SAMPLES = SampleCount(conversations=12, tokens=70)


def full_work(recipe: str, layers: tuple[int, ...] = ALL_LAYERS) -> Work:
    return Work(
        config=FULL,
        recipe=load_recipe(recipe),
        layers=layers,
        limits=BuildOptions().limits(FULL, RULE),
        samples=MEASURED_SAMPLES,
        is_made_from_seed=True,
    )


def stages(work: Work) -> dict[str, StageCost]:
    cache = cache_size(work, TARGETS["cpu"])
    costs = [artifact_cost(work), *cpu_costs(work, cache.total_bytes)]
    return {cost.stage: cost for cost in costs}


# Peaks of anonymous memory in bytes, and seconds on one core, of two layers with both towers,
# embedding and head; values made from a seed.
MEASURED = [
    ("bf16", "export", 2.35e9, 59),
    ("bf16", "build", 0.47e9, 8.2),
    ("bf16", "verify", 6.86e9, 34.7),
    ("bf16", "run", 7.27e9, 12.5),
    ("int4", "calibrate", 6.26e9, 224),
    ("int4", "verify", 13.19e9, 46.8),
    ("int4", "run", 11.5e9, 56),
]


@pytest.mark.parametrize(("recipe", "stage", "memory_bytes", "time_s"), MEASURED)
def test_an_estimate_is_near_the_run_that_it_comes_from(
    recipe: str, stage: str, memory_bytes: float, time_s: float
) -> None:
    cost = stages(full_work(recipe, TWO_LAYERS))[stage]
    assert cost.memory_bytes == pytest.approx(memory_bytes, rel=0.15)
    assert cost.time_s == pytest.approx(time_s, rel=0.6)


def test_requests_of_two_layers_are_near_what_was_measured() -> None:
    speed = cpu_speed(full_work("bf16", TWO_LAYERS))
    assert speed.new_tokens_per_s == pytest.approx(1 / 0.098, rel=0.1)
    assert speed.prompt_tokens_per_s == pytest.approx(512 / 2.19, rel=0.15)
    assert speed.largest_image_s == pytest.approx(89, rel=0.2)  # 5328 of 5352 patches


def test_the_cache_of_a_token_is_that_of_the_release() -> None:
    # 27 layers x (512 + 64) numbers: 31,104 bytes in bf16, twice that in fp32.
    work = full_work("bf16")
    cpu, rtx = (cache_size(work, TARGETS[name]) for name in ("cpu", "rtx:sm89"))
    assert (cpu.dtype, cpu.token_bytes) == ("fp32", 62_208)
    assert (rtx.dtype, rtx.token_bytes) == ("bf16", 31_104)
    assert cpu.slot_bytes == cpu.total_bytes == 62_208 * 8192
    slots = replace(work, limits=replace(work.limits, max_slots=3))
    assert cache_size(slots, TARGETS["cpu"]).total_bytes == 3 * 62_208 * 8192


def test_the_largest_image_of_thinking_2506_has_4464_tokens() -> None:
    limits = BuildOptions().limits(FULL, LARGER_RULE)
    assert limits.max_patches == 4 * 4464


@pytest.mark.parametrize("name", recipe_names())
def test_running_holds_four_bytes_for_each_number(name: str) -> None:
    work = full_work(name)
    in_fp32 = 4 * (total_size(work.parameters, work.recipe).parameters - 335_544_320)
    memory = stages(work)["run"].memory_bytes
    if name == "fp32":  # 14.39e9 numbers of experts are mapped
        in_fp32 -= 4 * 26 * 553_648_128
    assert in_fp32 < memory < in_fp32 + 10e9


def test_experts_are_laid_out_anew_where_they_are_not_quantised() -> None:
    count = 26 * 553_648_128
    left = {name: stages(full_work(name))["build"].left_bytes for name in recipe_names()}
    assert left["fp32"] == 4 * count
    assert left["bf16"] == left["fp16"] == 2 * count
    assert {left[name] for name in ("int8", "fp8", "int4", "int8-weight-only")} == {0}
    # Every NVFP4 number becomes a byte: the decoder without kv_b, head and embedding.
    matrices = count + 314_966_016 + 69_206_016 + 26 * 17_301_504
    assert matrices < left["nvfp4"] < matrices + 4 * len(parameters(FULL))


def test_recipes_that_round_what_meets_the_experts_run_all_of_them_on_the_cpu() -> None:
    plain, rounded = (cpu_speed(full_work(name)) for name in ("int8-weight-only", "int8"))
    # 2.58e9 numbers for a token become 2.58e9 + 58 / 64 x 14.39e9 = 15.6e9.
    assert plain.new_tokens_per_s / rounded.new_tokens_per_s == pytest.approx(6.06, rel=0.01)


def test_longer_samples_take_more_of_everything() -> None:
    work = full_work("int4")
    more = replace(work, samples=SampleCount(conversations=200, tokens=16384))
    less, most = stages(work)["calibrate"], stages(more)["calibrate"]
    assert most.memory_bytes > less.memory_bytes
    assert most.disk_bytes > less.disk_bytes
    assert most.time_s > less.time_s
    assert less.memory_of.startswith("head in fp32")
    assert most.memory_of == "layer_01 in fp32, attention of a sample"


def test_a_stored_checkpoint_is_exported_in_blocks() -> None:
    stored = replace(full_work("bf16"), is_made_from_seed=False)
    cost = stages(stored)["export"]
    assert cost.memory_bytes == pytest.approx(0.51e9, rel=0.2)  # seen with 1e9 values
    assert (
        cost.left_bytes
        == cost.disk_bytes
        == total_size(stored.parameters, stored.recipe).stored_bytes
    )


def test_a_plan_holds_what_is_known_of_its_target_and_nothing_else() -> None:
    work = full_work("int4")
    cpu, rtx = (make_plan(work, name) for name in ("cpu", "rtx:sm89"))
    assert [stage.stage for stage in cpu.stages] == ["calibrate", "build", "verify", "run"]
    assert cpu.speed == cpu_speed(work)
    assert (cpu.device, cpu.experts) == (None, ())
    assert [stage.stage for stage in rtx.stages] == [
        "calibrate",
        "build/external",
        "build/embedded",
    ]
    assert rtx.speed is None
    assert rtx.device is not None
    assert rtx.device.cache_bytes == rtx.cache.total_bytes
    assert {step.form for step in rtx.experts if step.is_chosen} == {"plugin"}


def test_several_gpus_take_what_each_of_them_takes() -> None:
    work = full_work("fp8")
    assert make_plan(work, "rtx:sm120+sm89").target == "rtx:sm89+sm120"
    assert make_plan(work, "rtx:sm89+sm120").refusals == ()
    (one,) = make_plan(work, "rtx:sm86").refusals
    (about_one,) = make_plan(work, "rtx:sm86+sm89").refusals
    assert one.startswith("no fp8 (")
    assert about_one == f"rtx:sm86 has {one}"
