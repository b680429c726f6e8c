"""What a recipe takes, before anything runs: sizes, cache, stages; and which targets take it."""

from dataclasses import dataclass

from export.recipe.sizes import PartSize, part_sizes, total_size

from .cache_layout import cache_record
from .costs import Speed, StageCost, artifact_cost, cpu_costs, cpu_speed
from .targets import TARGETS, Target, refusals
from .work import Work


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

    parts: tuple[PartSize, ...]
    total: PartSize
    cache: CacheSize
    stages: tuple[StageCost, ...]
    """Estimates."""
    speed: Speed | None
    """An estimate; None where nothing was measured to make it from."""
    targets: tuple[Verdict, ...]


def make_plan(work: Work, target: Target) -> Plan:
    """Do the arithmetic for one target.

    Args:
        work: model, recipe and limits; the recipe fits the model.
        target: where it shall run.
    """
    cache = cache_size(work, target)
    is_cpu = target.name == "cpu"
    stages = [artifact_cost(work)]
    if is_cpu:
        stages += cpu_costs(work, cache.total_bytes)
    return Plan(
        parts=tuple(part_sizes(work.parameters, work.recipe)),
        total=total_size(work.parameters, work.recipe),
        cache=cache,
        stages=tuple(stages),
        speed=cpu_speed(work) if is_cpu else None,
        targets=tuple(_judge(one, work) for one in TARGETS.values()),
    )


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
