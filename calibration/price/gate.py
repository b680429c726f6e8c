"""The gate: a calibration that has seen too little, or a recipe that loses too much, ends here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

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


def check_price(recipe: Recipe, stats: Mapping[str, Any], limits: GateLimits) -> list[str]:
    """Name where a recipe loses more than its budget."""
    price = stats["head"]["recipes"].get(recipe.name, {}).get("price")
    if price is None:
        return []
    budget, problems = limits.budget or recipe.budget, []
    if not price["kl_mean"] <= budget.kl:
        problems.append(f"mean KL {price['kl_mean']:.3g} is over the budget of {budget.kl:g}")
    if not price["top1"] >= budget.top1:
        problems.append(f"top-1 agreement {price['top1']:.4g} is below {budget.top1:g}")
    if "exact_match" in price:
        lost = price["exact_match_reference"] - price["exact_match"]
        if lost > budget.exact_match:
            problems.append(f"exact match falls by {lost:.3g}, allowed {budget.exact_match:g}")
    return problems
