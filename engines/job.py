"""One build of a target, and what every kind of target shares: lowered graphs on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from export.graph.journal import Journal
from export.graph.weights_file import WEIGHTS_FOLDER, bind_weights, write_weights
from export.recipe.recipe import Recipe
from runtime.artifact.manifest import Manifest
from runtime.artifact.records import FileRecord, TargetRecord
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError
from runtime.files import write_bytes
from runtime.limits import Limits
from runtime.progress import Progress

from .lowering import Pass, lower
from .options import BuildOptions

STAGE = "build"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is there and what is wanted."""

    folder: Path
    target: str
    manifest: Manifest
    config: KimiVLConfig
    recipe: Recipe
    limits: Limits
    options: BuildOptions

    @property
    def neutral(self) -> dict[str, str]:
        """SHA-256 of each neutral graph, which names its weights."""
        files = self.manifest.files
        return {name: files[path].sha256 for name, path in self.manifest.graphs.items()}

    def lowered_path(self, name: str) -> str:
        """Place a lowered graph beside the weights that it shares with the neutral one."""
        stem = self.manifest.graphs[name].removesuffix(".onnx")
        return f"{stem}.{file_name(self.target)}.onnx"


class TargetBuild(Protocol):
    """How the files of one kind of target are made."""

    @property
    def key(self) -> str:
        """Hash of everything that the files follow from."""

    def make(self, journal: Journal, progress: Progress) -> TargetRecord:
        """Make every file that the journal does not have."""


def file_name(target: str) -> str:
    """Write a target's name so that it can be part of a file's."""
    return target.replace(":", "-")


def write_lowered(job: Job, name: str, passes: Sequence[Pass], journal: Journal) -> str:
    """Lower one graph: its new weights first, then the graph that names them; give its path."""
    result = job.lowered_path(name)
    place = Path(result)
    location = f"{WEIGHTS_FOLDER}/{place.stem}.bin"
    weights = (place.parent / location).as_posix()
    if journal.has(result) and (weights not in journal.files or journal.has(weights)):
        return result
    lowered = lower(load_graph(job.folder / job.manifest.graphs[name]), passes)
    if lowered.new_weights:
        journal.ensure(weights, lambda path: write_weights(path, lowered.new_weights))
        bind_weights(lowered.model.graph, lowered.new_weights, location)
    journal.ensure(result, lambda path: write_graph(path, lowered.model))
    return result


def load_graph(path: Path) -> ir.Model:
    """Read an ONNX graph of an artifact; its weights stay in their files.

    Raises:
        ArtifactError: it is not one.
    """
    try:
        return ir.load(path)
    except Exception as error:  # the parser raises many types without a common base
        raise ArtifactError(f"{path}: not an ONNX graph; export the checkpoint again") from error


def write_graph(path: Path, model: ir.Model) -> FileRecord:
    """Write a graph as a whole; the same model gives the same bytes."""
    write_bytes(path, ir.to_proto(model).SerializeToString(deterministic=True))
    return FileRecord.of(path)
