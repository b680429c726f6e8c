"""The export stage: checkpoint to neutral graphs, weights, embedding table and manifest.

Every file is made on its own and noted in a journal, so the stage can be killed anywhere and goes
on; memory stays at about one tensor, however large the model is.
"""

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from runtime import __version__, names
from runtime.artifact.manifest import FILE_NAME, MODEL_FOLDER, Manifest
from runtime.artifact.records import FileRecord, TableRecord
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError, CapacityError, InputError
from runtime.files import (
    TEMPORARY_SUFFIX,
    announced,
    exclusive,
    refuse_inside,
    sha256_of,
    write_bytes,
)
from runtime.generation.releases import check_generation
from runtime.progress import Progress, silent
from runtime.prompt.encoder import PromptEncoder

from .checkpoint.reader import Checkpoint
from .graph.journal import Journal, journal_path, key_of, remove_journal
from .graph.quantise import quantise_graph
from .graph.quantise_cache import quantise_cache
from .graph.weights_file import WEIGHTS_FOLDER, Values, bind_weights, lay_out, write_weights
from .graphs import DTYPES, EMBEDDING_TENSOR, GraphPlan, plan_graphs
from .quantised.scales_file import GraphScales
from .quantised.storage import quantised_inputs, quantised_places, stored_values
from .quantised.table import SCALES, stored_table
from .recipe.recipe import Recipe
from .sources import Source, parameter_sources
from .trace import trace

STAGE = "export"
GRAPH_FOLDER = "graphs"
CALIBRATION_FOLDER = "calibration"
"""What calibration leaves in the artifact; it may be there before the export."""
TABLE_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT8: "int8",
}
"""Names of types in the manifest."""
_TRACED_WITH = ("torch", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A finished calibration: what a quantised recipe needs to be stored."""

    scales: Path
    """Folder with a file for each graph that is quantised; see `quantised.scales_file`."""
    record: Mapping[str, Any]
    """Goes into the manifest."""
    files: tuple[str, ...] = ()
    """What calibration leaves in the artifact, relative to its folder."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export."""

    recipe: Recipe = field(default_factory=lambda: Recipe(name="fp32", base="fp32"))
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
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    progress: Progress = silent,
    *,
    calibrated: Calibrated | None = None,
) -> Manifest:
    """Write the neutral artifact; resume or reuse what is already there.

    Args:
        checkpoint: an open checkpoint.
        folder: of the artifact.
        options: what to export.
        progress: told in bytes of weights.
        calibrated: the scales of a quantised recipe.

    Raises:
        ArtifactError: the folder holds something else.
        InputError: the recipe is quantised and there are no scales.
        CapacityError: the disk is too small, told before anything is written.
        CheckpointError: a tensor holds values that are not finite in the recipe's type.
        KimiVLError: the folder lies in the checkpoint.
    """
    refuse_inside(folder, checkpoint.folder)
    layers = options.checked_layers(checkpoint.config)
    recipe = options.recipe
    if recipe.is_quantised and calibrated is None:
        raise InputError(
            f"recipe {recipe.name} is quantised, and its scales come from samples; "
            "use `tool.py calibrate` or `tool.py compile`, which do both"
        )
    check_text_files(checkpoint)
    inputs = {
        "source": _fingerprint(checkpoint),
        "recipe": recipe.name,
        "precision": recipe.values(),
        "calibration": dict(calibrated.record) if calibrated else {},
        "layers": list(layers),
        "taps": options.taps,
        "versions": _versions(),
    }
    finished = _finished(folder, inputs)
    if finished is not None:
        remove_journal(folder, STAGE)
        return finished
    return _Export(checkpoint, folder, options, layers, calibrated, progress).run(key_of(inputs))


def check_text_files(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose artifact would not understand text or know an answer's end.

    Raises:
        CheckpointError: tokenizer, template, image rule or generation config cannot be used.
    """
    encoder = PromptEncoder.load(checkpoint.folder, checkpoint.config)
    check_generation(checkpoint.config, checkpoint.folder, encoder.tokenizer)


class _Export:
    """One run of the stage."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        options: ExportOptions,
        layers: Sequence[int],
        calibrated: Calibrated | None,
        progress: Progress,
    ) -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.options = options
        self.layers = tuple(layers)
        self.calibrated = calibrated
        self.dtype = DTYPES[options.recipe.base]
        self.plans = plan_graphs(checkpoint.config, self.dtype, layers, taps=options.taps)
        self.tables = _embedding_files(checkpoint, options.recipe)
        self.stored = {plan.name: self._stored(plan) for plan in self.plans}
        self.progress = progress
        self.traced: tuple[str, ir.Model] | None = None

    def run(self, key: str) -> Manifest:
        sizes = {name: _weights_bytes(values) for name, values in self.stored.items()}
        sizes |= {name: _weights_bytes([values]) for name, values in self.tables.items()}
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
        for name in self.calibrated.files if self.calibrated else ():
            journal.ensure(name, FileRecord.of)
        stored: dict[str, list[Values]] = {
            **{name: [values] for name, values in self.tables.items()},
            **self.stored,
        }
        for name, values in stored.items():
            journal.ensure(_weights_path(name), partial(write_weights, tensors=values))
            done += sizes[name]
            self.progress(STAGE, done, total)
        for count, plan in enumerate(self.plans, start=1):
            journal.ensure(_graph_path(plan.name), partial(self._write_graph, plan))
            self.progress("trace", count, len(self.plans))
        manifest = self._manifest(journal.files)
        manifest.write(self.folder)
        journal.close()
        return manifest

    def _stored(self, plan: GraphPlan) -> list[Values]:
        """List what the graph's weights file holds."""
        module = plan.build()
        sources = parameter_sources(module, plan.prefix, self.checkpoint)
        return stored_values(sources, module, self.options.recipe, self._scales(plan))

    def _scales(self, plan: GraphPlan) -> GraphScales:
        """Read what calibration found for a graph; nothing where nothing is quantised."""
        if self.calibrated is None or not quantised_places(plan.build(), self.options.recipe):
            return GraphScales()
        return GraphScales.read(self.calibrated.scales / f"{plan.name}.safetensors")

    def _write_graph(self, plan: GraphPlan, path: Path) -> FileRecord:
        """Bind one graph to its weights; graphs of one kind are traced once."""
        if self.traced is None or self.traced[0] != plan.kind:
            module = plan.build()
            model = trace(module, plan.spec)
            recipe = self.options.recipe
            quantise_graph(model, quantised_inputs(module, recipe, self._scales(plan)))
            if recipe.cache is not None and plan.is_layer:
                rank = self.checkpoint.config.decoder.latent_rank
                quantise_cache(model, rank=rank, group=recipe.cache.group)
            self.traced = (plan.kind, model)
        model = self.traced[1]
        model.graph.name = plan.name
        bind_weights(model.graph, self.stored[plan.name], f"{WEIGHTS_FOLDER}/{plan.name}.bin")
        write_bytes(path, ir.to_proto(model).SerializeToString(deterministic=True))
        return FileRecord.of(path)

    def _manifest(self, files: dict[str, FileRecord]) -> Manifest:
        table = self.tables[names.EMBEDDING]
        vocab_size, width = table.shape
        return Manifest(
            source=_fingerprint(self.checkpoint),
            recipe=self.options.recipe.name,
            precision=self.options.recipe.values(),
            calibration=dict(self.calibrated.record) if self.calibrated else {},
            layers=self.layers,
            taps=self.options.taps,
            versions=_versions(),
            embedding=TableRecord(
                path=_weights_path(names.EMBEDDING),
                dtype=TABLE_TYPES[table.dtype],
                shape=(vocab_size, width),
                scales=_weights_path(SCALES) if SCALES in self.tables else None,
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
    ours = (*begun, CALIBRATION_FOLDER, journal_path(folder, "calibrate").name)
    strangers = [path.name for path in folder.iterdir() if path.name not in ours]
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


def _embedding_files(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Values]:
    """What the files of the embedding table hold, by name."""
    decoder = checkpoint.config.decoder
    source = Source(
        name=names.EMBEDDING,
        shape=(decoder.vocab_size, decoder.width),
        torch_dtype=DTYPES[recipe.base],
        checkpoint=checkpoint,
        tensors=(EMBEDDING_TENSOR,),
        turn=lambda tensor: tensor,
    )
    if recipe.embedding is None:
        return {names.EMBEDDING: source}
    return stored_table(source)


def _weights_bytes(values: Sequence[Values]) -> int:
    return max(place.offset + place.length for place in lay_out(values).values())


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
    return FileRecord.of(path)


def _graph_path(name: str) -> str:
    return f"{GRAPH_FOLDER}/{name}.onnx"


def _weights_path(name: str) -> str:
    return f"{GRAPH_FOLDER}/{WEIGHTS_FOLDER}/{name}.bin"


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _TRACED_WITH}
    return {"kimivl": __version__, **found}
