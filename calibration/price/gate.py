"""The gate: a calibration that has seen too little, or a recipe that loses too much, ends here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from export.recipe.recipe import Budget, Recipe
from runtime.errors import InputError

from ..data.samples import Sample


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What a calibration must hold; every value may be overridden, and the manifest says so."""

    min_tokens_per_expert: int = 32
    """An expert with fewer is measured by the tokens of its whole layer."""
    max_fallback_share: float = 0.05
    """Of all experts, the share that may be measured that way."""
    budget: Budget | None = None
    """In place of the recipe's."""

    def overrides(self) -> list[str]:
        """Name the values that are not the defaults."""
        usual = GateLimits()
        return [name for name, value in asdict(self).items() if value != getattr(usual, name)]

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """Give all values as they hold for a recipe, and which were overridden."""
        budget = asdict(self.budget or recipe.budget)
        return {**asdict(self), "budget": budget, "overridden": self.overrides()}


_BUDGET_NAMES = {"kl": ("kl", 1.0), "top1": ("top1", 1.0), "em": ("exact_match", 0.01)}
"""On the command line: the field, and what a number given for it is multiplied by."""


def parse_budget(text: str, base: Budget) -> Budget:
    """Read `kl=0.02,top1=0.97,em=1.0` (em in points); what is left out stays as in `base`.

    Raises:
        InputError: another name, or no number.
    """
    values = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        try:
            key, factor = _BUDGET_NAMES[name]
            values[key] = float(number) * factor
            if not 0 <= values[key] <= (math.inf if name == "kl" else 1):
                raise ValueError(number)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"budget {word.strip()!r}: expected kl=NATS, top1=SHARE or em=POINTS, "
                "several of them with commas between"
            ) from error
    return replace(base, **values)


def check_data(recipe: Recipe, observed: Sequence[Sample]) -> list[str]:
    """Name what a set of samples lacks for a recipe, before anything slow."""
    problems = []
    seen = [part for part in ("vision", "projector") if part in recipe.parts]
    if seen and not any(sample.images for sample in observed):
        problems.append(
            f"no sample has an image, and the recipe quantises {' and '.join(seen)}; "
            "add conversations with images, or leave these parts out of the recipe"
        )
    if not any((~sample.is_image).any() for sample in observed):
        problems.append("no sample has text")
    return problems


def check_stats(recipe: Recipe, stats: Mapping[str, Any], limits: GateLimits) -> list[str]:
    """Name what a finished pass shows to be too little or too much."""
    found = {graph: one["recipes"].get(recipe.name, {}) for graph, one in stats.items()}
    broken = [graph for graph, one in found.items() if one and not one["is_finite"]]
    problems = [f"values that are not finite behind {', '.join(broken)}"] if broken else []
    return problems + _check_experts(recipe, stats, limits) + check_price(recipe, stats, limits)


def _check_experts(recipe: Recipe, stats: Mapping[str, Any], limits: GateLimits) -> list[str]:
    if "experts" not in recipe.parts:
        return []
    layers = {
        graph: one["observed"]["experts"]
        for graph, one in stats.items()
        if "experts" in one.get("observed", {})
    }
    rare = {graph: one["rare"] for graph, one in layers.items() if one["rare"]}
    total = sum(len(one["text"]) for one in layers.values())
    if not total or sum(rare.values()) <= limits.max_fallback_share * total:
        return []
    worst = max(rare, key=lambda graph: rare[graph])
    return [
        f"{sum(rare.values())} of {total} experts saw fewer than {limits.min_tokens_per_expert} "
        f"tokens (allowed {limits.max_fallback_share:.0%}; most in {worst}, {rare[worst]}); "
        "add samples of other kinds"
    ]


def is_within(lost: float, most: float) -> bool:
    """Tell whether a loss is at most a limit: 1 - 24 / 25 is 0.04, whatever floats make of it."""
    return lost <= most or math.isclose(lost, most, rel_tol=1e-9, abs_tol=1e-12)


def check_price(recipe: Recipe, stats: Mapping[str, Any], limits: GateLimits) -> list[str]:
    """Name where a recipe loses more than its budget, in the units of `--budget`."""
    return [one.problem for one in _excesses(recipe, stats, limits)]


def price_advice(recipe: Recipe, stats: Mapping[str, Any], limits: GateLimits) -> str:
    """Say how to go on where a recipe loses more than its budget; nothing where it does not."""
    wider = [one.wider for one in _excesses(recipe, stats, limits) if one.wider]
    if not wider:
        return ""
    return (
        f"; the same command with --budget {','.join(wider)} goes on; with another folder, more "
        "samples (--held-out) judge more finely"
    )


class _Excess(NamedTuple):
    """A measure over its budget."""

    problem: str
    wider: str
    """What `--budget` would have to say, empty where no limit would do."""


def _excesses(recipe: Recipe, stats: Mapping[str, Any], limits: GateLimits) -> Iterator[_Excess]:
    price = stats["head"]["recipes"].get(recipe.name, {}).get("price")
    if price is None:
        return
    budget, kl, top1 = limits.budget or recipe.budget, price["kl_mean"], price["top1"]
    if not is_within(kl, budget.kl):
        problem = f"mean KL {kl:.3g} nats is over the budget of {budget.kl:g}"
        yield _Excess(problem, f"kl={_rounded_up(kl)}" if math.isfinite(kl) else "")
    if not is_within(1 - top1, 1 - budget.top1):
        problem = f"top-1 agreement {top1:.4g} is below {budget.top1:g}"
        yield _Excess(problem, f"top1={1 - float(_rounded_up(1 - top1)):.6g}")
    if "exact_match" not in price:
        return
    lost = price["exact_match_reference"] - price["exact_match"]
    if not is_within(lost, budget.exact_match):
        count = price.get("replies")  # not in what earlier versions measured
        which = f" ({round(lost * count)} of {count} samples)" if count else ""
        problem = (
            f"exact match falls by {100 * lost:.3g} points{which}, "
            f"allowed {100 * budget.exact_match:g}"
        )
        yield _Excess(problem, f"em={_rounded_up(100 * lost)}")


def _rounded_up(number: float) -> str:
    """Write a number above 0 with two digits, none of them too small."""
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / step - 1e-6) * step:.6g}"
