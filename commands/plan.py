"""`plan`: what a recipe takes, before anything runs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError, UnsupportedError, describe_problems

from . import options, output
from .flag_groups import LimitFlags, with_flag_groups

if TYPE_CHECKING:
    from engines.costs import Speed, StageCost
    from engines.device_memory import DeviceMemory
    from engines.plan import CacheSize, Plan, Verdict
    from engines.trt.costs import ExpertsStep
    from engines.work import Work
    from export.checkpoint.outline import Outline
    from export.recipe.recipe import Recipe
    from export.recipe.sizes import PartSize

_KERNELS = {"own": "with `make ops`", "stock": "without"}


@with_flag_groups
def plan(
    checkpoint: options.CheckpointArgument,
    *,
    recipe: options.RecipeOption = "fp32",
    target: options.PlanTargetOption = "cpu",
    layers: options.LayersOption = None,
    revision: options.RevisionOption = None,
    samples: options.SamplesOption = 128,
    sample_tokens: options.SampleTokensOption = 512,
    limits: LimitFlags,
    json: options.JsonOption = False,
) -> None:
    """Tell what a recipe takes, before anything runs.

    Bytes of each part, cache, memory, disk and time of each stage, and which targets can take the
    recipe. From config and headers alone: no weight is read, and of a hub id only the small files.
    Fails if the recipe does not fit the model, or the target cannot take it.
    """
    kept = options.layers_from_text(layers)
    from engines.plan import make_plan
    from engines.work import SampleCount, Work
    from export.checkpoint.outline import Outline

    outline = Outline.read(checkpoint, revision=revision, layers=kept)
    work = Work(
        config=outline.config,
        recipe=_load_recipe(recipe, outline),
        layers=outline.layers,
        limits=limits.make_options().limits(outline.config, outline.rule),
        samples=SampleCount(conversations=samples, tokens=sample_tokens),
        is_made_from_seed=outline.values == "seed",
    )
    made = make_plan(work, target)
    if json:
        head = {"checkpoint": checkpoint, "values": outline.values, "target": made.target}
        output.json_value({**head, **_fields(made, work)})
    else:
        _show(made, work)
    if outline.values == "absent":
        output.note(f"note: {checkpoint} has no weights yet; its config and image rule are enough")
    _check_target(made, work.recipe.name)


def _load_recipe(name: str, outline: "Outline") -> "Recipe":
    """Load a recipe that fits the model."""
    from export.recipe.fit import check_recipe
    from export.recipe.reading import load_recipe

    recipe = load_recipe(name)
    if recipe.is_searched:
        raise InputError(
            f"recipe {name}: its parts are found by measurement; plan one of those that it "
            "chooses between, such as int8-weight-only or int4"
        )
    problems = check_recipe(recipe, outline.config)
    if problems:
        raise InputError(describe_problems(f"recipe {name}, every target", problems))
    return recipe


def _check_target(made: "Plan", recipe: str) -> None:
    if made.refusals:
        where = f"target {made.target} cannot take recipe {recipe}"
        raise UnsupportedError(describe_problems(where, made.refusals))


def _fields(made: "Plan", work: "Work") -> dict[str, Any]:
    return {
        "recipe": work.recipe.name,
        "precision": work.recipe.values(),
        "layers": list(work.layers),
        "parts": [_part_fields(part) for part in made.parts],
        "total": _part_fields(made.total),
        "cache": asdict(made.cache),
        "limits": asdict(work.limits),
        "largest_image": {
            "patches": work.limits.max_patches,
            "tokens": work.limits.max_patches // 4,
        },
        "samples": asdict(work.samples),
        "stages": [asdict(stage) for stage in made.stages],
        "speeds": [asdict(speed) for speed in made.speeds],
        "device": _device_fields(made.device) if made.device else None,
        "experts": [asdict(step) for step in made.experts],
        "targets": [asdict(verdict) for verdict in made.targets],
    }


def _part_fields(part: "PartSize") -> dict[str, Any]:
    return {**asdict(part), "stored_bytes": part.stored_bytes}


def _device_fields(memory: "DeviceMemory") -> dict[str, Any]:
    return {**asdict(memory), "total_bytes": memory.total_bytes}


def _show(made: "Plan", work: "Work") -> None:
    columns: tuple[str, ...]
    columns = ("part", "format", "parameters", "codes", "scales", "stored", "read for a token")
    output.table(columns, [_part_row(part) for part in (*made.parts, made.total)])
    output.heading("cache and largest image")
    output.table((), _cache_rows(made.cache, work))
    samples = work.samples
    calibrated = f"; {samples.conversations} conversations of {samples.tokens} tokens"
    output.heading(
        "stages: estimates, on one core of 2.6 GHz"
        + (calibrated if work.recipe.is_quantised else "")
    )
    columns = ("stage", "memory", "mapped", "disk needed", "left", "time", "memory is")
    output.table(columns, [_stage_row(stage) for stage in made.stages])
    if made.speeds:
        output.heading("requests: estimates")
        columns = ("", *(_KERNELS[speed.kernels] for speed in made.speeds))
        output.table(columns, _speed_rows(made.speeds, work))
    if made.device is not None:
        _show_device(made.device, made.experts)
    output.heading("targets")
    columns = ("target", "takes the recipe", "why, or what to know")
    output.table(columns, [_verdict_row(verdict) for verdict in made.targets])


def _show_device(memory: "DeviceMemory", steps: "Sequence[ExpertsStep]") -> None:
    output.heading("requests: nothing was measured on such a card to estimate them from")
    plans = ", weights bound to the plans" if memory.code_bytes else ""
    output.heading(f"memory of the GPU: estimates{plans}")
    output.table((), _device_rows(memory))
    if steps:
        output.heading("experts of a layer, for a step of N tokens: weights moved, multiply-adds")
        tokens = dict.fromkeys(step.tokens for step in steps)
        columns = ("form", "chosen", *(f"N = {count}" for count in tokens))
        output.table(columns, _experts_rows(steps))


def _device_rows(memory: "DeviceMemory") -> list[tuple[str, str]]:
    plans = [("plans", output.size(memory.code_bytes))] if memory.code_bytes else []
    return [
        ("weights, as stored", output.size(memory.weights_bytes)),
        ("cache, all slots", output.size(memory.cache_bytes)),
        (f"scratch, for {memory.scratch_of}", output.size(memory.scratch_bytes)),
        ("between graphs", output.size(memory.buffers_bytes)),
        *plans,
        ("total", output.size(memory.total_bytes)),
    ]


def _experts_rows(steps: "Sequence[ExpertsStep]") -> list[tuple[str, ...]]:
    """Make a row for each form."""
    rows: dict[str, list[str]] = {}
    for step in steps:
        row = rows.setdefault(step.form, [step.form, "yes" if step.is_chosen else "no"])
        row.append(f"{output.size(step.moved_bytes)}, {step.multiply_adds / 1e9:.3g} G")
    return [tuple(row) for row in rows.values()]


def _part_row(part: "PartSize") -> tuple[str, ...]:
    sizes = (part.code_bytes, part.scale_bytes, part.stored_bytes, part.active_bytes)
    return (part.part, part.format, f"{part.parameters:,}", *map(output.size, sizes))


def _cache_rows(cache: "CacheSize", work: "Work") -> list[tuple[str, str]]:
    limits = work.limits
    is_chosen = work.recipe.cache is not None or cache.dtype == work.recipe.base
    always = "" if is_chosen else ", in every recipe"
    return [
        ("type", cache.dtype + always),
        ("one token", output.size(cache.token_bytes)),
        (f"a slot of {limits.max_tokens} tokens", output.size(cache.slot_bytes)),
        (f"all slots ({limits.max_slots})", output.size(cache.total_bytes)),
        ("largest image", f"{limits.max_patches} patches, {limits.max_patches // 4} tokens"),
    ]


def _stage_row(stage: "StageCost") -> tuple[str, ...]:
    sizes = (stage.memory_bytes, stage.mapped_bytes, stage.disk_bytes, stage.left_bytes)
    return (stage.stage, *map(output.size, sizes), _duration(stage.time_s), stage.memory_of)


def _speed_rows(speeds: "Sequence[Speed]", work: "Work") -> list[tuple[str, ...]]:
    behind = f"behind {work.limits.max_tokens}"
    return [
        ("on", *(speed.conditions for speed in speeds)),
        ("largest image", *(_duration(speed.largest_image_s) for speed in speeds)),
        ("prompt", *(_speed(speed.prompt_tokens_per_s) for speed in speeds)),
        ("answer", *(_speed(speed.new_tokens_per_s) for speed in speeds)),
        (f"answer {behind}", *(_speed(speed.last_tokens_per_s) for speed in speeds)),
        ("weights for a token", *(output.size(speed.token_bytes) for speed in speeds)),
    ]


def _speed(tokens_per_s: float) -> str:
    shown = f"{tokens_per_s:.2g}" if tokens_per_s < 100 else f"{tokens_per_s:,.0f}"
    return f"{shown} tokens/s"


def _verdict_row(verdict: "Verdict") -> tuple[str, ...]:
    answer = "yes" if verdict.takes else "no"
    return (verdict.target, answer, "; ".join(verdict.reasons) or verdict.remark)


def _duration(seconds: float) -> str:
    """Write a time as roughly as it is known."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds / scale:.2g} {unit}"
    return f"{seconds:.2g} s"
