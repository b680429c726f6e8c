"""Finds the recipe `auto`: a pass over all trials, then a choice that gets stricter if it must."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal, key_of, remove_journal
from export.graphs import plan_graphs
from export.quantised.places import places
from export.recipe.recipe import Budget, Part, PartRecipe, Recipe
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
_SCALE_BITS = 16


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
        sizes = _part_sizes(self.checkpoint, self.layers)
        forms = candidates(lambda recipe: _can_take(recipe, sizes))
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
        return read_trials(forms, prices, lambda part, form: _active_bytes(sizes[part], form))

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


_Shapes = list[tuple[int, int, float]]


def _part_sizes(checkpoint: Checkpoint, layers: list[int]) -> dict[Part, _Shapes]:
    """For each part its matrices: inputs, numbers in all, share that one token reads."""
    config = checkpoint.config
    decoder = config.decoder
    found: dict[Part, _Shapes] = {}
    for plan in plan_graphs(config, torch.float32, layers, taps=False):
        module = plan.build()
        for place in places(module):
            shape = module.get_parameter(place.parameter).shape
            share = 1.0
            if place.part in ("vision", "projector"):
                share = 0.0
            elif place.part == "experts":
                share = decoder.experts_per_token / decoder.num_experts
            found.setdefault(place.part, []).append((shape[-2], shape.numel(), share))
    return found


def _can_take(recipe: Recipe, sizes: dict[Part, _Shapes]) -> bool:
    """Whether the groups of a recipe divide every matrix."""
    return all(
        part.weights.group is None or inputs % part.weights.group == 0
        for name, part in recipe.parts.items()
        for inputs, _, _ in sizes.get(name, [])
    )


def _active_bytes(shapes: _Shapes, form: PartRecipe | None) -> float:
    if form is None:
        return sum(2.0 * count * share for _, count, share in shapes)
    group = form.weights.group
    return sum(
        count * share * (form.weights.bits + _SCALE_BITS / (group or inputs)) / 8
        for inputs, count, share in shapes
    )
