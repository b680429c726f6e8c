"""Finds the recipe `auto`: a pass over all trials, then a choice that gets stricter if it must."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal, key_of, remove_journal
from export.recipe.fit import check_recipe
from export.recipe.recipe import Budget, Part, PartRecipe, Recipe
from export.recipe.sizes import Parameter, parameters, part_sizes
from runtime.errors import GateError
from runtime.files import write_bytes
from runtime.progress import Progress, silent

from ..passes.runs import Samples
from ..passes.streaming import Pass
from .choice import Trial, as_recipe, candidates, choose, read_trials, trial_recipe

STAGE = "calibrate-trials"
_FOLDER = "trials"
_CHOICE_FILE = "choice.json"
_STRICTER = 0.6


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search in one artifact folder."""

    checkpoint: Checkpoint
    root: Path
    """The artifact folder."""
    folder: Path
    """Of the calibration in it."""
    samples: Samples
    layers: list[int]
    min_expert_tokens: int
    budget: Budget
    progress: Progress = silent

    def trials(self, inputs: dict[str, Any]) -> list[Trial]:
        """Measure every part in every format, alone; journaled like any pass."""
        config = self.checkpoint.config
        forms = candidates(lambda recipe: not check_recipe(recipe, config))
        recipes = [trial_recipe(part, form) for part, some in forms.items() for form in some]
        way = Pass(
            checkpoint=self.checkpoint,
            folder=self.folder / _FOLDER,
            samples=self.samples,
            recipes=recipes,
            layers=self.layers,
            min_expert_tokens=self.min_expert_tokens,
            progress=self.progress,
            stage=STAGE,
        )
        stats = way.run(Journal(self.root, STAGE, key_of(inputs)), self.root)
        prices = {name: one["price"] for name, one in stats["head"]["recipes"].items()}
        found = parameters(config, self.layers)
        return read_trials(forms, prices, lambda part, form: _active_bytes(found, part, form))

    def choice(self, trials: list[Trial]) -> Recipe:
        """Give the recipe for the strictness that is in force.

        Raises:
            GateError: nothing is within the budget, not even the base type.
        """
        chosen = choose(trials, self.budget, self.strictness)
        recipe = as_recipe(chosen, self.budget)
        if not recipe.parts:
            raise GateError(
                "recipe auto: no quantised part is within the budget; allow more with --budget, "
                "or use bf16"
            )
        return recipe

    @property
    def strictness(self) -> float:
        """The share of the budget that trials may use together."""
        path = self.folder / _CHOICE_FILE
        return float(json.loads(path.read_text())["strictness"]) if path.is_file() else 1.0

    def be_stricter(self) -> None:
        """Remember that the last choice lost too much as a whole."""
        content = json.dumps({"strictness": self.strictness * _STRICTER}).encode() + b"\n"
        write_bytes(self.folder / _CHOICE_FILE, content)

    def finish(self) -> None:
        """Remove what only the search needed."""
        shutil.rmtree(self.folder / _FOLDER, ignore_errors=True)
        (self.folder / _CHOICE_FILE).unlink(missing_ok=True)
        remove_journal(self.root, STAGE)


def _active_bytes(found: list[Parameter], part: Part, form: PartRecipe | None) -> int:
    """Bytes of a part that one generated token reads, in a format or in the base type."""
    recipe = Recipe(name="", parts={part: form} if form else {})
    return next((one.active_bytes for one in part_sizes(found, recipe) if one.part == part), 0)
