"""The verify stage: every file hashed, every graph measured again, the figures in the manifest."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from export.graphs import plan_graphs
from export.recipe.reading import recipe_from_values
from export.recipe.recipe import Recipe
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.records import TargetRecord
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError, InputError, describe_problems
from runtime.files import announced
from runtime.progress import Progress, silent

from .data.examples import Example
from .embedding import measure_embedding
from .joined import measure_joined
from .on_device import measure_on_device
from .parity import measure_graph
from .price.judged import Judged
from .price.target import price_target
from .report_of_targets import report_targets
from .tolerances import EXACT, GRAPH_FP32, GRAPH_ROUNDED, SAME_GRAPH

STAGE = "verify"
OWN_LIMITS = {names.DECODER: SAME_GRAPH, names.EMBEDDING: EXACT}
"""Of what is not compared with a torch module."""


@announced(STAGE)
def verify_artifact(
    folder: Path,
    target: str = "cpu",
    progress: Progress = silent,
    *,
    held_out: Sequence[Example] | None = None,
    on_device: bool = False,
) -> Manifest:
    """Hash all files and compare each of a target's graphs with its torch module.

    A decoder that was joined from such graphs is compared with these, and the embedding table as
    the runtime reads it with what the recipe says.

    Args:
        folder: of the artifact.
        target: which of its targets.
        progress: told in graphs, then in samples.
        held_out: the conversations that judged a quantised artifact; then the target's own price
            is measured, too, where it runs on this machine.
        on_device: run a target that needs a GPU on it, too.

    Returns:
        The manifest with the figures of this target, also written to the folder.

    Raises:
        ArtifactError: a file is not what the manifest says, or a graph is off by more than its
            tolerance; all are listed. The manifest stays as it was.
        InputError: a target that runs on the CPU was to run on a card.
        KimiVLError: another run writes to the folder now.
    """
    # Locked for as long as it takes: figures are written beside the very files that were measured,
    # and a second run is refused at its start, not when it has measured for an hour.
    with Artifact.to_change(folder, rehash=True, progress=progress) as artifact:
        return _verify(artifact, target, progress, held_out=held_out, on_device=on_device)


def _verify(
    artifact: Artifact,
    target: str,
    progress: Progress,
    *,
    held_out: Sequence[Example] | None,
    on_device: bool,
) -> Manifest:
    record = artifact.target(target)
    if on_device and not record.needs_gpu:
        raise InputError(f"target {target} has no plans: --on-device is about what needs a card")
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    manifest = artifact.manifest
    measures = _measures(artifact, record, config)
    figures = _figures(
        measures, tolerance(manifest, target), f"{artifact.folder}, target {target}", progress
    )
    measured = manifest.with_parity(target, figures)
    runs_here = on_device or not record.needs_gpu
    if on_device:
        measured = measured.with_device(target, *measure_on_device(artifact, target, progress))
    if held_out is not None and manifest.calibration and runs_here:
        measured = _with_price(artifact, measured, target, held_out, progress)
    if measured != manifest:
        measured.write(artifact.folder)
    return measured


def _figures(
    measures: Mapping[str, Callable[[], float]], allowed: float, where: str, progress: Progress
) -> dict[str, float]:
    """Measure every graph, and refuse what is off by more than is allowed."""
    figures: dict[str, float] = {}
    problems: list[str] = []
    for done, (name, measure) in enumerate(measures.items(), start=1):
        limit = OWN_LIMITS.get(name, allowed)
        try:
            figures[name] = measure()
        except Exception as error:  # noqa: BLE001  a foreign graph breaks in many ways
            problems.append(f"{name} cannot be measured: {_one_line(error)}")
        else:
            if not figures[name] <= limit:
                problems.append(f"{name} is off by {figures[name]:.1e}, allowed {limit:.0e}")
        progress(STAGE, done, len(measures))
    if problems:
        raise ArtifactError(describe_problems(where, problems))
    return figures


def _measures(
    artifact: Artifact, record: TargetRecord, config: KimiVLConfig
) -> dict[str, Callable[[], float]]:
    """List what measures each graph, the table, and the joined graph where there is one."""
    manifest = artifact.manifest
    plans = plan_graphs(config, torch.float32, manifest.layers, taps=manifest.taps)
    measures: dict[str, Callable[[], float]] = {
        plan.name: partial(measure_graph, artifact, record.graphs[plan.name], plan, config)
        for plan in plans
    }
    measures[names.EMBEDDING] = partial(measure_embedding, artifact, config)
    if record.decoder is not None:
        measures[names.DECODER] = partial(measure_joined, artifact, record, record.decoder, config)
    return measures


def _with_price(
    artifact: Artifact,
    measured: Manifest,
    target: str,
    held_out: Sequence[Example],
    progress: Progress,
) -> Manifest:
    """Add what a target loses, to the report as well."""
    judged = Judged.load(artifact, held_out)
    priced = measured.with_price(target, price_target(artifact, target, judged, progress))
    return report_targets(artifact, priced, judged)


def tolerance(manifest: Manifest, target: str) -> float:
    """How far a graph of a target of this artifact may be from its torch module."""
    recipe = recipe_from_values(manifest.precision, manifest.recipe, "the manifest's recipe")
    is_rounded = recipe.cache or any(part.activations for part in recipe.parts.values())
    rounds_by_itself = recipe.may_round_activations and target == "cpu"
    # Nothing is rounded on a GPU; experts of 8 bits are on the CPU's kernels, where this is judged.
    rounds_by_itself |= target == "cuda" and _experts_codes(recipe) == "int8"
    return GRAPH_ROUNDED if is_rounded or rounds_by_itself else GRAPH_FP32


def _experts_codes(recipe: Recipe) -> str | None:
    part = recipe.parts.get("experts")
    return None if part is None else part.weights.codes


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no details').splitlines()[0]}"
