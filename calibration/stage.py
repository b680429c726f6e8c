"""The calibrate stage: checkpoint and conversations to a quantised artifact with its price.

Scales first, graph by graph; then the gate; then the export, which stores weights once, in their
final format.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal, key_of, remove_journal
from export.stage import CALIBRATION_FOLDER, Calibrated, ExportOptions, export_checkpoint
from runtime import __version__
from runtime.artifact.manifest import FILE_NAME, Manifest
from runtime.errors import ArtifactError, GateError, InputError, describe_problems
from runtime.files import announced, exclusive, sha256_of, write_bytes
from runtime.progress import Progress, silent
from runtime.prompt.encoder import PromptEncoder

from .examples import Example
from .gate import GateLimits, check_data, check_stats
from .runs import Samples
from .samples import DEFAULT_PROMPT, content_hash, draw, encode, load_conversations
from .streaming import STAGE, Pass

QUALITY_FILE = "quality.json"
DEFAULT_MAX_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which conversations are observed, and which are judged."""

    data: str
    """A built-in set, a JSONL file, or a folder of images."""
    held_out: str | None = None
    """The same; no conversation may be in both. None: a fifth of `data` is kept for it."""
    prompt: str = DEFAULT_PROMPT
    """What images of a folder are asked."""
    max_samples: int | None = None
    max_held_out: int = 100
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Everything that decides the result."""

    export: ExportOptions
    data: DataOptions
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Both sets, drawn and read."""

    observed: Sequence[Example]
    held_out: Sequence[Example]

    @classmethod
    def load(cls, options: DataOptions) -> "Conversations":
        """Read and shuffle; refuse sets that overlap.

        Raises:
            InputError: a set cannot be used, or both hold the same conversation.
        """
        observed = draw(load_conversations(options.data, options.prompt), None, options.seed)
        if options.held_out is None:
            count = min(options.max_held_out, len(observed) // 5)
            held_out, observed = observed[:count], observed[count:]
        else:
            held_out = load_conversations(options.held_out, options.prompt)
            held_out = draw(held_out, options.max_held_out, options.seed)
        observed = observed[: options.max_samples]
        if not observed or not held_out:
            raise InputError(
                f"{options.data}: {len(observed) + len(held_out)} conversations are too few; "
                "give at least 5, or a set of its own with --held-out"
            )
        both = {content_hash([one]) for one in observed} & {content_hash([one]) for one in held_out}
        if both:
            raise InputError(
                f"{len(both)} conversations are both observed and held out; "
                "what is observed cannot judge"
            )
        return cls(observed=observed, held_out=held_out)

    def encode(self, checkpoint: Checkpoint, max_tokens: int) -> Samples:
        """Turn both into ids and patches."""
        prompts = PromptEncoder.load(checkpoint.folder, checkpoint.config)
        observed, held_out = (
            [encode(one, prompts, max_tokens) for one in some]
            for some in (self.observed, self.held_out)
        )
        return Samples(observed=observed, held_out=held_out)


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
        InputError: the recipe quantises nothing, or the samples cannot be used.
        ArtifactError: the folder holds something else.
    """
    recipe = options.export.recipe
    if not recipe.is_quantised:
        raise InputError(
            f"recipe {recipe.name} quantises nothing; use `tool.py export` or `tool.py compile`"
        )
    conversations = Conversations.load(options.data)
    inputs = _inputs(checkpoint, options, conversations)
    finished = _finished_record(folder, inputs, options)
    if finished is not None:
        return _export(checkpoint, folder, options, finished, progress)
    samples = conversations.encode(checkpoint, options.data.max_tokens)
    problems = check_data(recipe, samples.observed)
    if problems:
        raise GateError(describe_problems(options.data.data, problems))
    with exclusive(folder):
        stats = _run(checkpoint, folder, options, samples, inputs, progress)
    problems = check_stats(recipe, stats, options.limits)
    if problems:
        raise GateError(describe_problems(f"recipe {recipe.name}", problems))
    record = _record(folder, options, inputs, stats)
    return _export(checkpoint, folder, options, record, progress)


def _inputs(
    checkpoint: Checkpoint, options: CalibrateOptions, conversations: Conversations
) -> dict[str, Any]:
    """Everything that scales and price follow from."""
    return {
        "source": checkpoint.identity(),
        "precision": options.export.recipe.values(),
        "layers": list(options.export.checked_layers(checkpoint.config)),
        "data": content_hash(conversations.observed),
        "held_out": content_hash(conversations.held_out),
        "samples": len(conversations.observed),
        "held_out_samples": len(conversations.held_out),
        "max_tokens": options.data.max_tokens,
        "seed": options.data.seed,
        "min_tokens_per_expert": options.limits.min_tokens_per_expert,
        "version": __version__,
    }


def _run(
    checkpoint: Checkpoint,
    folder: Path,
    options: CalibrateOptions,
    samples: Samples,
    inputs: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    recipe = options.export.recipe
    way = Pass(
        checkpoint=checkpoint,
        folder=folder / CALIBRATION_FOLDER,
        samples=samples,
        recipes=[recipe],
        layers=inputs["layers"],
        min_expert_tokens=options.limits.min_tokens_per_expert,
        progress=progress,
    )
    stats = way.run(Journal(folder, STAGE, key_of(inputs)), folder)
    quality = {"recipe": recipe.name, "precision": recipe.values(), "graphs": stats}
    content = json.dumps(quality, indent=1, sort_keys=True).encode() + b"\n"
    write_bytes(way.folder / QUALITY_FILE, content)
    return stats


def _record(
    folder: Path, options: CalibrateOptions, inputs: dict[str, Any], stats: dict[str, Any]
) -> dict[str, Any]:
    """What the manifest says of a calibration that passed."""
    recipe = options.export.recipe
    price = dict(stats["head"]["recipes"][recipe.name]["price"])
    price.pop("samples")
    scales = sorted((folder / CALIBRATION_FOLDER / "scales" / recipe.name).iterdir())
    return {
        "key": key_of(inputs),
        "data": {
            name: inputs[name]
            for name in ("data", "held_out", "samples", "held_out_samples", "seed", "max_tokens")
        },
        "gate": options.limits.record(recipe),
        "price": price,
        "scales": {path.name: sha256_of(path) for path in scales},
    }


def _finished_record(
    folder: Path, inputs: dict[str, Any], options: CalibrateOptions
) -> dict[str, Any] | None:
    """Take the record from a finished artifact that was made of the same."""
    if not (folder / FILE_NAME).exists():
        return None
    record = dict(Manifest.read(folder).calibration)
    is_same = record.get("key") == key_of(inputs)
    if not is_same or record["gate"] != options.limits.record(options.export.recipe):
        raise ArtifactError(
            f"{folder}: holds an artifact of another calibration; choose another output folder "
            "or remove this one"
        )
    return record


def _export(
    checkpoint: Checkpoint,
    folder: Path,
    options: CalibrateOptions,
    record: dict[str, Any],
    progress: Progress,
) -> Manifest:
    recipe = options.export.recipe
    found = folder / CALIBRATION_FOLDER
    scales = found / "scales" / recipe.name
    kept = [*sorted(scales.iterdir()), found / QUALITY_FILE, found / "reference.safetensors"]
    calibrated = Calibrated(
        scales=scales,
        record=record,
        files=tuple(path.relative_to(folder).as_posix() for path in kept),
    )
    manifest = export_checkpoint(
        checkpoint, folder, options.export, progress, calibrated=calibrated
    )
    remove_journal(folder, STAGE)
    return manifest
