"""The calibrate stage: checkpoint and conversations to a quantised artifact with its price.

Scales first, graph by graph; then the gate; then the export, which stores weights once, in their
final format.
"""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal, key_of, remove_journal
from export.recipe.fit import check_recipe
from export.recipe.reading import recipe_from_values
from export.recipe.recipe import Recipe
from export.stage import (
    CALIBRATION_FOLDER,
    Calibrated,
    ExportOptions,
    check_text_files,
    export_checkpoint,
)
from runtime import __version__
from runtime.artifact.manifest import FILE_NAME, Manifest
from runtime.errors import ArtifactError, GateError, InputError, describe_problems
from runtime.files import announced, exclusive, refuse_inside, sha256_of, write_bytes
from runtime.progress import Progress, silent
from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.tokenizer import Tokenizer

from .data.conversations import Conversations, DataOptions
from .data.samples import content_hash, encode
from .data.turns import encode_turns, turns_of
from .passes.runs import Samples
from .passes.streaming import STAGE, Pass
from .price.distance import Reference
from .price.gate import GateLimits, check_data, check_price, check_stats, price_advice
from .report.page import checkpoint_name, write_report
from .search.choice import table
from .search.trials import Search

QUALITY_FILE = "quality.json"
REFERENCE_FILE = "reference.safetensors"
REPORT_FILE = "report.html"

Stats = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Everything that decides the result."""

    export: ExportOptions
    data: DataOptions
    limits: GateLimits = field(default_factory=GateLimits)


@announced(STAGE)
def calibrate_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    options: CalibrateOptions,
    progress: Progress = silent,
) -> Manifest:
    """Find scales, measure the price, pass the gate, and write the quantised neutral artifact.

    A run that was stopped goes on behind the last finished graph; a finished one is reused.

    Raises:
        GateError: the samples or the recipe do not pass; all reasons are listed. What was measured
            stays in the folder, and another run with other limits takes it up.
        InputError: the recipe quantises nothing or does not fit the model, or the samples cannot
            be used.
        ArtifactError: the folder holds something else.
        KimiVLError: the folder lies in the checkpoint.
    """
    recipe = options.export.recipe
    refuse_inside(folder, checkpoint.folder)
    if not recipe.is_quantised:
        raise InputError(
            f"recipe {recipe.name} quantises nothing; use `tool.py export` or `tool.py compile`"
        )
    misfits = check_recipe(recipe, checkpoint.config)
    if misfits:
        raise InputError(describe_problems(f"recipe {recipe.name}", misfits))
    check_text_files(checkpoint)
    conversations = Conversations.load(options.data)
    run = _Calibration(checkpoint, folder, options, conversations, progress)
    finished = run.finished()
    if finished is not None:
        stored = recipe_from_values(finished.precision, finished.recipe, str(folder))
        return run.export(stored, dict(finished.calibration))
    with exclusive(folder):
        found, record = run.calibrate()
    return run.export(found, record)


class _Calibration:
    """One run of the stage."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        options: CalibrateOptions,
        conversations: Conversations,
        progress: Progress,
    ) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.found = folder / CALIBRATION_FOLDER
        self.options = options
        self.conversations = conversations
        self.progress = progress
        self.turns = turns_of(conversations.held_out)
        self.layers = list(options.export.checked_layers(checkpoint.config))
        self.inputs = self._inputs()

    def _inputs(self) -> dict[str, Any]:
        """Everything that scales and price follow from."""
        recipe, data = self.options.export.recipe, self.options.data
        budget = self.options.limits.record(recipe)["budget"] if recipe.is_searched else None
        return {
            "source": self.checkpoint.identity(),
            "precision": {"searched": budget} if recipe.is_searched else recipe.values(),
            "layers": self.layers,
            "data": content_hash(self.conversations.observed),
            "held_out": content_hash(self.conversations.held_out),
            "samples": len(self.conversations.observed),
            "held_out_samples": len(self.conversations.held_out),
            "turns": len(self.turns),
            "max_tokens": data.max_tokens,
            "seed": data.seed,
            "min_tokens_per_expert": self.options.limits.min_tokens_per_expert,
            "version": __version__,
        }

    def finished(self) -> Manifest | None:
        """Return the manifest of an artifact that was made of the same.

        Raises:
            ArtifactError: it was made of something else.
        """
        if not (self.folder / FILE_NAME).exists():
            return None
        manifest = Manifest.read(self.folder)
        record = manifest.calibration
        gate = self.options.limits.record(self.options.export.recipe)
        if record.get("key") == key_of(self.inputs) and record["gate"] == gate:
            return manifest
        there, asked = manifest.recipe, self.options.export.recipe.name
        others = "other samples, limits or checkpoint"
        what = f"recipe {there}, asked for {asked}" if there != asked else others
        raise ArtifactError(
            f"{self.folder}: holds an artifact of another calibration ({what}); choose another "
            "output folder or remove this one"
        )

    def calibrate(self) -> tuple[Recipe, dict[str, Any]]:
        """Find scales and pass the gate; returns the recipe and its record for the manifest."""
        recipe = self.options.export.recipe
        samples = self._samples()
        if recipe.is_searched:
            return self._search(samples)
        _refuse(self.options.data.data, check_data(recipe, samples.observed))
        stats = self._run(recipe, samples, [])
        self._judge(recipe, samples, stats)
        return recipe, self._record(recipe, stats)

    def _samples(self) -> Samples:
        """Turn the conversations into ids and patches."""
        prompts = PromptEncoder.load(self.checkpoint.folder, self.checkpoint.config)
        observed, held_out = (
            [encode(one, prompts, self.options.data.max_tokens) for one in some]
            for some in (self.conversations.observed, self.conversations.held_out)
        )
        turns = encode_turns(self.turns, prompts, self.options.data.max_tokens)
        return Samples(observed=observed, held_out=held_out, turns=turns)

    def _search(self, samples: Samples) -> tuple[Recipe, dict[str, Any]]:
        """Find the recipe by measurement; a choice that loses too much gives way to a stricter."""
        limits = self.options.limits
        search = Search(
            checkpoint=self.checkpoint,
            root=self.folder,
            folder=self.found,
            samples=replace(samples, turns=()),
            layers=self.layers,
            min_expert_tokens=limits.min_tokens_per_expert,
            budget=limits.budget or self.options.export.recipe.budget,
            progress=self.progress,
        )
        trials = search.trials(self.inputs)
        while True:
            recipe = search.choice(trials)
            _refuse(self.options.data.data, check_data(recipe, samples.observed))
            stats = self._run(recipe, samples, table(trials, recipe))
            if not check_price(recipe, stats, limits):
                break
            search.be_stricter()
            self._forget_run()
        self._judge(recipe, samples, stats)
        search.finish()
        return recipe, self._record(recipe, stats)

    def _run(self, recipe: Recipe, samples: Samples, choices: list[dict[str, Any]]) -> Stats:
        """Send all samples through the model, and write what was found."""
        way = Pass(
            checkpoint=self.checkpoint,
            folder=self.found,
            samples=samples,
            recipes=[recipe],
            layers=self.layers,
            min_expert_tokens=self.options.limits.min_tokens_per_expert,
            progress=self.progress,
        )
        key = key_of({**self.inputs, "precision": recipe.values()})
        stats = way.run(Journal(self.folder, STAGE, key), self.folder)
        quality = {
            "checkpoint": checkpoint_name(self.checkpoint.folder),
            "recipe": recipe.name,
            "precision": recipe.values(),
            "choices": choices,
            "graphs": stats,
        }
        content = json.dumps(quality, indent=1, sort_keys=True).encode() + b"\n"
        write_bytes(self.found / QUALITY_FILE, content)
        return stats

    def _judge(self, recipe: Recipe, samples: Samples, stats: Stats) -> None:
        """Write the report, and refuse a recipe that does not pass the gate."""
        limits, report = self.options.limits, self.found / REPORT_FILE
        problems = check_stats(recipe, stats, limits)
        write_report(
            report,
            json.loads((self.found / QUALITY_FILE).read_text(encoding="utf-8")),
            recipe=recipe,
            samples=samples.held_out,
            examples=self.conversations.held_out,
            reference=Reference.load(self.found / REFERENCE_FILE),
            decode=Tokenizer.load(self.checkpoint.folder).decode,
            gate=limits.record(self.options.export.recipe),
            problems=problems,
        )
        advice = price_advice(recipe, stats, limits)
        _refuse(f"recipe {recipe.name} ({report} shows more)", problems, advice)

    def _forget_run(self) -> None:
        """Remove what the last run left: the next one has another recipe."""
        remove_journal(self.folder, STAGE)
        for name in ("stats", "scales", "work"):
            shutil.rmtree(self.found / name, ignore_errors=True)

    def _record(self, recipe: Recipe, stats: Stats) -> dict[str, Any]:
        """What the manifest says of a calibration that passed."""
        price = dict(stats["head"]["recipes"][recipe.name]["price"])
        for name in ("samples", "replies"):
            price.pop(name, None)  # `replies` is not in what earlier versions measured
        data = ("data", "held_out", "samples", "held_out_samples", "turns", "seed", "max_tokens")
        return {
            "key": key_of(self.inputs),
            "data": {name: self.inputs[name] for name in data},
            "gate": self.options.limits.record(self.options.export.recipe),
            "price": price,
            "scales": {path.name: sha256_of(path) for path in self._scales(recipe)},
        }

    def _scales(self, recipe: Recipe) -> list[Path]:
        return sorted((self.found / "scales" / recipe.name).glob("*"))

    def export(self, recipe: Recipe, record: dict[str, Any]) -> Manifest:
        """Write the quantised neutral artifact."""
        pages = (QUALITY_FILE, REFERENCE_FILE, REPORT_FILE)
        kept = [*self._scales(recipe), *(self.found / name for name in pages)]
        calibrated = Calibrated(
            scales=self.found / "scales" / recipe.name,
            record=record,
            files=tuple(path.relative_to(self.folder).as_posix() for path in kept),
        )
        wanted = replace(self.options.export, recipe=recipe)
        manifest = export_checkpoint(
            self.checkpoint, self.folder, wanted, self.progress, calibrated=calibrated
        )
        remove_journal(self.folder, STAGE)
        for name in ("stats", "work"):  # all that matters of them is in `QUALITY_FILE`
            shutil.rmtree(self.found / name, ignore_errors=True)
        return manifest


def _refuse(where: str, problems: list[str], advice: str = "") -> None:
    if problems:
        raise GateError(describe_problems(where, problems) + advice)
