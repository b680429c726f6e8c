"""What a recipe takes, before anything runs: sizes, cache, stages; and which targets take it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from export.recipe.sizes import PartSize, part_sizes, total_size

from .cache_layout import cache_record
from .costs import Speed, StageCost, artifact_cost
from .cpu.costs import cpu_costs, cpu_speeds
from .cuda.costs import build_cost as cuda_build_cost
from .cuda.costs import device_memory as cuda_memory
from .device_memory import DeviceMemory
from .options import check_cache
from .targets import TARGETS, Target, refusals, single_targets
from .trt.sm import parse_target
from .work import Work

if TYPE_CHECKING:
    from .trt.costs import ExpertsStep


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The latent cache of a target."""

    dtype: str
    token_bytes: int
    """One token in all layers."""
    slot_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a target can take the recipe."""

    target: str
    takes: bool
    reasons: tuple[str, ...]
    """Why not, and what would work."""
    remark: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that can be said without reading a weight."""

    target: str
    """The name that `build` knows it by."""
    parts: tuple[PartSize, ...]
    total: PartSize
    cache: CacheSize
    stages: tuple[StageCost, ...]
    """Estimates."""
    speeds: tuple[Speed, ...]
    """Estimates, one for each kind of kernels; none where nothing was measured to make them from.
    """
    device: DeviceMemory | None
    """An estimate for a target on a GPU; None for `cpu`."""
    experts: "tuple[ExpertsStep, ...]"
    """What each form of the experts takes on a target of TensorRT; empty for others."""
    targets: tuple[Verdict, ...]
    """Of every single target."""
    refusals: tuple[str, ...]
    """Why the target cannot take the recipe, and what would work; none if it can."""


def make_plan(work: Work, target: str) -> Plan:
    """Do the arithmetic for one target.

    Args:
        work: model, recipe and limits; the recipe fits the model.
        target: where it shall run; several GPUs as in `rtx:sm89+sm120`.

    Raises:
        UnsupportedError: there is no such target.
        CapacityError: no machine can hold the cache.
    """
    singles = single_targets(target)
    cache = cache_size(work, singles[0])  # those of TensorRT-RTX cache alike
    check_cache(work.limits, cache.token_bytes)
    plan = Plan(
        target=target,
        parts=tuple(part_sizes(work.parameters, work.recipe)),
        total=total_size(work.parameters, work.recipe),
        cache=cache,
        stages=(artifact_cost(work),),
        speeds=(),
        device=None,
        experts=(),
        targets=tuple(_judge(one, work) for one in TARGETS.values()),
        refusals=tuple(_refusals(singles, work)),
    )
    return _ADDITIONS.get(target, _with_tensorrt)(plan, work)


def _with_cpu(plan: Plan, work: Work) -> Plan:
    costs = cpu_costs(work, plan.cache.total_bytes)
    speeds = cpu_speeds(work, plan.cache.token_bytes)
    return replace(plan, stages=(*plan.stages, *costs), speeds=tuple(speeds))


def _with_cuda(plan: Plan, work: Work) -> Plan:
    return replace(
        plan,
        stages=(*plan.stages, cuda_build_cost(work)),
        device=cuda_memory(work, plan.cache.total_bytes),
    )


def _with_tensorrt(plan: Plan, work: Work) -> Plan:
    from .trt.costs import build_costs, device_memory, experts_steps  # half a second, for ONNX

    target = parse_target(plan.target)
    return replace(
        plan,
        target=target.name,
        stages=(*plan.stages, *build_costs(work, target.sms)),
        device=device_memory(work, target.sms, plan.cache.total_bytes),
        experts=tuple(experts_steps(work, target.sms)),
    )


_ADDITIONS = {"cpu": _with_cpu, "cuda": _with_cuda}
"""What a target's plan has beside that of the model; all others are TensorRT's."""


def cache_size(work: Work, target: Target) -> CacheSize:
    """Compute the bytes of the latent cache: one row per token and layer."""
    base, form = target.cache_type(work.recipe), work.recipe.cache
    record = cache_record(work.config.decoder, form, base)
    token_bytes = record.token_bytes * len(work.layers)
    slot_bytes = token_bytes * work.limits.max_tokens
    return CacheSize(
        dtype=f"{form}, keys {base}" if form else base,
        token_bytes=token_bytes,
        slot_bytes=slot_bytes,
        total_bytes=slot_bytes * work.limits.max_slots,
    )


def _judge(target: Target, work: Work) -> Verdict:
    reasons = refusals(target, work.recipe)
    return Verdict(
        target=target.name,
        takes=not reasons,
        reasons=tuple(reasons),
        remark=target.remark,
    )


def _refusals(singles: Sequence[Target], work: Work) -> Iterator[str]:
    """Give every reason, with the GPU that it is about where there are several."""
    for one in singles:
        about = f"{one.name} has " if len(singles) > 1 else ""
        yield from (f"{about}{reason}" for reason in refusals(one, work.recipe))
