"""The recipe `auto`: each part tried in each format alone, the cheapest mix within a budget chosen.

Losses of parts are taken to add up, which is checked afterwards: the chosen recipe is calibrated as
a whole, and while it loses more than the budget, a stricter one is chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from export.recipe.reading import AUTO
from export.recipe.recipe import PARTS, Budget, Part, PartRecipe, Recipe, WeightFormat

from ..price.gate import is_within

NAME_OF_BASE = "base"
_FORMATS = (
    WeightFormat(codes="int8"),
    WeightFormat(codes="int4", group=32),
    WeightFormat(codes="int4", group=128),
)

Bytes = Callable[[Part, PartRecipe | None], float]
"""Bytes of a part that one generated token reads, in a format or in the base type."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One part in one format, alone, and what that loses."""

    part: Part
    form: PartRecipe | None
    """None: the base type, which loses nothing."""
    active_bytes: float
    kl: float = 0.0
    top1: float = 1.0
    exact_match_loss: float = 0.0

    @property
    def name(self) -> str:
        """Name of the recipe that tries it."""
        return f"{self.part}-{self.form or NAME_OF_BASE}".replace("/", "-")


def candidates(can_take: Callable[[Recipe], bool]) -> dict[Part, list[PartRecipe]]:
    """List the formats to try for each part.

    Args:
        can_take: whether the model's shapes allow a recipe.
    """
    forms = [PartRecipe(weights=form, clip=form.codes == "int4") for form in _FORMATS]
    return {part: [form for form in forms if can_take(trial_recipe(part, form))] for part in PARTS}


def trial_recipe(part: Part, form: PartRecipe) -> Recipe:
    """A recipe that quantises one part."""
    name = Trial(part=part, form=form, active_bytes=0).name
    return Recipe(name=name, parts={part: form})


def read_trials(
    forms: Mapping[Part, Sequence[PartRecipe]], prices: Mapping[str, Mapping[str, Any]], size: Bytes
) -> list[Trial]:
    """Put together what a pass over all trial recipes found.

    Args:
        forms: what was tried.
        prices: by name of the trial recipe, as `price.price` gives it.
        size: bytes that a token reads.
    """
    trials = []
    for part, tried in forms.items():
        trials.append(Trial(part=part, form=None, active_bytes=size(part, None)))
        for form in tried:
            found = prices[trial_recipe(part, form).name]
            lost = found.get("exact_match_reference", 0.0) - found.get("exact_match", 0.0)
            trials.append(
                Trial(
                    part=part,
                    form=form,
                    active_bytes=size(part, form),
                    kl=found["kl_mean"],
                    top1=found["top1"],
                    exact_match_loss=lost,
                )
            )
    return trials


def choose(trials: Sequence[Trial], budget: Budget, strictness: float) -> list[Trial]:
    """Pick one trial for each part: the fewest bytes whose losses together are within the budget.

    All combinations are looked at; of equal ones the one that loses least is taken.

    Args:
        trials: of all parts, the base type among them.
        budget: what may be lost.
        strictness: the share of the budget that may be used, 0 to 1.
    """
    by_part = [[one for one in trials if one.part == part] for part in PARTS]
    best: tuple[float, float] | None = None
    chosen: list[Trial] = []
    for combination in product(*[some for some in by_part if some]):
        kl = sum(one.kl for one in combination)
        missed = sum(1.0 - one.top1 for one in combination)
        lost = sum(max(0.0, one.exact_match_loss) for one in combination)
        is_cheap = (
            is_within(kl, strictness * budget.kl)
            and is_within(missed, strictness * (1.0 - budget.top1))
            and is_within(lost, strictness * budget.exact_match)
        )
        key = (sum(one.active_bytes for one in combination), kl)
        if is_cheap and (best is None or key < best):
            best, chosen = key, list(combination)
    return chosen


def as_recipe(chosen: Sequence[Trial], budget: Budget) -> Recipe:
    """Make a recipe of the choice."""
    parts = {one.part: one.form for one in chosen if one.form is not None}
    return Recipe(name=AUTO, summary="Chosen by measurement.", parts=parts, budget=budget)


def table(trials: Sequence[Trial], recipe: Recipe) -> list[dict[str, Any]]:
    """Give the table of choices for the report and the manifest."""
    rows = []
    for one in trials:
        values = asdict(one)
        values["format"] = str(one.form) if one.form else recipe.base
        values["chosen"] = recipe.parts.get(one.part) == one.form
        values.pop("form")
        rows.append(values)
    return rows
