"""The verify stage: every file hashed, every graph measured again, the figures in the manifest."""

from pathlib import Path

import torch

from export.graphs import plan_graphs
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError, describe_problems
from runtime.files import announced
from runtime.progress import Progress, silent

from .parity import measure_graph
from .tolerances import GRAPH_FP32

STAGE = "verify"


@announced(STAGE)
def verify_artifact(folder: Path, target: str = "cpu", progress: Progress = silent) -> Manifest:
    """Hash all files and compare each of a target's graphs with its torch module.

    Returns:
        The manifest with the figures of this target, also written to the folder.

    Raises:
        ArtifactError: a file is not what the manifest says, or a graph is off by more than its
            tolerance; all are listed. The manifest stays as it was.
    """
    artifact = Artifact.open(folder, rehash=True, progress=progress)
    record = artifact.target(target)
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    manifest = artifact.manifest
    plans = plan_graphs(config, torch.float32, manifest.layers, taps=manifest.taps)
    figures: dict[str, float] = {}
    problems: list[str] = []
    for done, plan in enumerate(plans, start=1):
        try:
            figure = measure_graph(artifact, record.graphs[plan.name], plan, config)
        except Exception as error:  # noqa: BLE001  a foreign graph breaks in many ways
            problems.append(f"{plan.name} cannot be measured: {_one_line(error)}")
        else:
            figures[plan.name] = figure
            if not figure <= GRAPH_FP32:
                problems.append(f"{plan.name} is off by {figure:.1e}, allowed {GRAPH_FP32:.0e}")
        progress(STAGE, done, len(plans))
    if problems:
        raise ArtifactError(describe_problems(f"{folder}, target {target}", problems))
    measured = manifest.with_parity(target, figures)
    if measured != manifest:
        measured.write(folder)
    return measured


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no details').splitlines()[0]}"
