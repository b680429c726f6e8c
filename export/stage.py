"""The export stage: checkpoint to neutral graphs, weights, embedding table and manifest.

Every file is made on its own and noted in a journal, so the stage can be killed anywhere and goes
on; memory stays at about one tensor, however large the model is.
"""

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch

from runtime import __version__, names
from runtime.artifact.manifest import FILE_NAME, MODEL_FOLDER, FileRecord, Manifest, TableRecord
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError, CapacityError, InputError
from runtime.files import TEMPORARY_SUFFIX, announced, exclusive, sha256_of, write_bytes
from runtime.progress import Progress, silent
from runtime.prompt.encoder import PromptEncoder

from .checkpoint.reader import Checkpoint
from .graph.journal import Journal, journal_path, key_of, remove_journal
from .graph.weights_file import WEIGHTS_FOLDER, bind_weights, lay_out, write_weights
from .graphs import DTYPES, EMBEDDING_TENSOR, GraphPlan, plan_graphs
from .sources import Source, parameter_sources
from .trace import trace

STAGE = "export"
GRAPH_FOLDER = "graphs"
_TRACED_WITH = ("torch", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export."""

    recipe: str = "fp32"
    layers: tuple[int, ...] | None = None
    """Decoder layers to keep; None means all."""
    taps: bool = False
    """Add the router's decisions to the outputs of MoE layers."""

    def checked_layers(self, config: KimiVLConfig) -> tuple[int, ...]:
        """Return the layers to export, refusing those that the model does not have."""
        count = config.decoder.num_layers
        layers = tuple(range(count)) if self.layers is None else self.layers
        wrong = [layer for layer in layers if not 0 <= layer < count]
        if wrong or not layers or sorted(set(layers)) != list(layers):
            raise InputError(
                f"layers {','.join(map(str, layers)) or '(none)'}: expected rising numbers "
                f"from 0 to {count - 1}"
            )
        return layers


@announced(STAGE)
def export_checkpoint(
    checkpoint: Checkpoint, folder: Path, options: ExportOptions, progress: Progress = silent
) -> Manifest:
    """Write the neutral artifact; resume or reuse what is already there.

    Raises:
        ArtifactError: the folder holds something else.
        CapacityError: the disk is too small, told before anything is written.
        CheckpointError: a tensor holds values that are not finite in the recipe's type.
    """
    layers = options.checked_layers(checkpoint.config)
    if options.recipe not in DTYPES:
        raise InputError(f"recipe {options.recipe!r}: known ones are {', '.join(DTYPES)}")
    PromptEncoder.load(checkpoint.folder, checkpoint.config)  # an artifact must understand text
    inputs = {
        "source": _fingerprint(checkpoint),
        "recipe": options.recipe,
        "layers": list(layers),
        "taps": options.taps,
        "versions": _versions(),
    }
    finished = _finished(folder, inputs)
    if finished is not None:
        remove_journal(folder, STAGE)
        return finished
    return _Export(checkpoint, folder, options, layers, progress).run(key_of(inputs))


class _Export:
    """One run of the stage."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        options: ExportOptions,
        layers: Sequence[int],
        progress: Progress,
    ) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.options = options
        self.layers = tuple(layers)
        self.dtype = DTYPES[options.recipe]
        self.plans = plan_graphs(checkpoint.config, self.dtype, layers, taps=options.taps)
        self.embedding = _embedding_source(checkpoint, self.dtype)
        self.sources = {plan.name: self._sources(plan) for plan in self.plans}
        self.progress = progress
        self.traced: tuple[str, ir.Model] | None = None

    def run(self, key: str) -> Manifest:
        sizes = {name: _weights_bytes(sources) for name, sources in self.sources.items()}
        sizes[names.EMBEDDING] = _weights_bytes([self.embedding])
        _check_disk(self.folder, sizes)
        with exclusive(self.folder):
            return self._write(key, sizes)

    def _write(self, key: str, sizes: dict[str, int]) -> Manifest:
        """Make every file that is not there yet."""
        journal = Journal(self.folder, STAGE, key)
        done, total = 0, sum(sizes.values())
        self.progress(STAGE, done, total)
        for file in self.checkpoint.text_files():
            journal.ensure(f"{MODEL_FOLDER}/{file.name}", partial(_copy, file))
        for name, sources in {names.EMBEDDING: [self.embedding], **self.sources}.items():
            journal.ensure(_weights_path(name), partial(write_weights, tensors=sources))
            done += sizes[name]
            self.progress(STAGE, done, total)
        for count, plan in enumerate(self.plans, start=1):
            journal.ensure(_graph_path(plan.name), partial(self._write_graph, plan))
            self.progress("trace", count, len(self.plans))
        manifest = self._manifest(journal.files)
        manifest.write(self.folder)
        journal.close()
        return manifest

    def _sources(self, plan: GraphPlan) -> list[Source]:
        return parameter_sources(plan.build(), plan.prefix, self.checkpoint)

    def _write_graph(self, plan: GraphPlan, path: Path) -> FileRecord:
        """Bind one graph to its weights; graphs of one kind are traced once."""
        if self.traced is None or self.traced[0] != plan.kind:
            self.traced = (plan.kind, trace(plan.build(), plan.spec))
        model = self.traced[1]
        model.graph.name = plan.name
        bind_weights(model.graph, self.sources[plan.name], f"{WEIGHTS_FOLDER}/{plan.name}.bin")
        write_bytes(path, ir.to_proto(model).SerializeToString(deterministic=True))
        return _record(path)

    def _manifest(self, files: dict[str, FileRecord]) -> Manifest:
        vocab_size, width = self.embedding.shape
        return Manifest(
            source=_fingerprint(self.checkpoint),
            recipe=self.options.recipe,
            layers=self.layers,
            taps=self.options.taps,
            versions=_versions(),
            embedding=TableRecord(
                path=_weights_path(names.EMBEDDING),
                dtype=str(self.dtype).removeprefix("torch."),
                shape=(vocab_size, width),
            ),
            graphs={plan.name: _graph_path(plan.name) for plan in self.plans},
            files=dict(sorted(files.items())),
        )


def _finished(folder: Path, inputs: dict[str, object]) -> Manifest | None:
    """Return the manifest of an artifact made from the same inputs; refuse any other content."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not a folder; choose another output folder")
    if (folder / FILE_NAME).exists():
        manifest = Manifest.read(folder)
        found = {name: getattr(manifest, name) for name in inputs}
        if key_of({**found, "layers": list(manifest.layers)}) == key_of(inputs):
            return manifest
        different = [
            name for name in inputs if key_of({"v": found[name]}) != key_of({"v": inputs[name]})
        ]
        raise ArtifactError(
            f"{folder}: holds an artifact with another {', '.join(different)}; "
            "choose another output folder or remove this one"
        )
    journal = journal_path(folder, STAGE)
    begun = (journal.name, journal.name + TEMPORARY_SUFFIX)
    strangers = [path.name for path in folder.iterdir() if path.name not in begun]
    if strangers and not journal.exists():
        raise ArtifactError(
            f"{folder}: not empty and not an artifact (found {sorted(strangers)[0]!r}); "
            "choose another output folder"
        )
    return None


def _fingerprint(checkpoint: Checkpoint) -> dict[str, object]:
    """Tell this checkpoint from others: its tensors, its config, its tokenizer and template."""
    texts = {file.name: sha256_of(file) for file in checkpoint.text_files()}
    return {**checkpoint.identity(), "text_files": texts}


def _embedding_source(checkpoint: Checkpoint, dtype: torch.dtype) -> Source:
    decoder = checkpoint.config.decoder
    return Source(
        name=names.EMBEDDING,
        shape=(decoder.vocab_size, decoder.width),
        torch_dtype=dtype,
        checkpoint=checkpoint,
        tensors=(EMBEDDING_TENSOR,),
        turn=lambda tensor: tensor,
    )


def _weights_bytes(sources: Sequence[Source]) -> int:
    return max(place.offset + place.length for place in lay_out(sources).values())


def _check_disk(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse to begin what will not fit; weights of a stopped run are there already."""
    there = (name for name in sizes if (folder / _weights_path(name)).is_file())
    needed_bytes = sum(sizes.values()) - sum(sizes[name] for name in there)
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    if needed_bytes > free_bytes:
        raise CapacityError(
            f"{folder}: the weights need {needed_bytes / 1e6:,.1f} MB, the disk has "
            f"{free_bytes / 1e6:,.1f} MB free; free some or choose another output folder"
        )


def _copy(file: Path, path: Path) -> FileRecord:
    write_bytes(path, file.read_bytes())
    return _record(path)


def _record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))


def _graph_path(name: str) -> str:
    return f"{GRAPH_FOLDER}/{name}.onnx"


def _weights_path(name: str) -> str:
    return f"{GRAPH_FOLDER}/{WEIGHTS_FOLDER}/{name}.bin"


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _TRACED_WITH}
    return {"kimivl": __version__, **found}
