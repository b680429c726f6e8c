"""The manifest: what an artifact folder holds, for which targets, and what was measured.

One JSON file, `manifest.json`, the same bytes for the same inputs: no times, no machine names.
Does not know: how a graph runs. See docs/artifact.md for every field.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import names
from ..errors import ArtifactError, KimiVLError
from ..files import resolve_inside, write_bytes
from .fields import Fields, MalformedError, read_file, read_table, read_target
from .records import TYPE_BYTES, FileRecord, TableRecord, TargetRecord

FORMAT = 3
FILE_NAME = "manifest.json"
MODEL_FOLDER = "model"
"""Subfolder with the checkpoint's own small files: config, tokenizer, template."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything known about an artifact folder."""

    source: Mapping[str, Any]
    """Fingerprint of the checkpoint."""
    recipe: str
    """Its name."""
    precision: Mapping[str, Any]
    """What the recipe says, in the form of its file: `base` and `parts`."""
    layers: tuple[int, ...]
    """Decoder layers that were exported, in order."""
    taps: bool
    """Whether the layers also put out the router's decisions."""
    versions: Mapping[str, str]
    embedding: TableRecord
    graphs: Mapping[str, str]
    """Neutral graphs: name to path."""
    files: Mapping[str, FileRecord]
    """Every file of the artifact but the manifest itself."""
    targets: Mapping[str, TargetRecord] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Figures of `verify`: stage to graph to error."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """Data, gate and price of a quantised recipe; empty for others. See docs/quantisation.md."""
    prices: Mapping[str, Any] = field(default_factory=dict)
    """What each target of a quantised artifact loses against fp32: target to figure to value."""
    devices: Mapping[str, Any] = field(default_factory=dict)
    """What a card made of each target of TensorRT: target to `level` and figures."""
    format: int = FORMAT

    def with_target(
        self, name: str, target: TargetRecord, files: Mapping[str, FileRecord]
    ) -> "Manifest":
        """Add or replace one target; its old figures no longer hold and go."""
        parity = {stage: value for stage, value in self.parity.items() if stage != name}
        prices = {stage: value for stage, value in self.prices.items() if stage != name}
        devices = {stage: value for stage, value in self.devices.items() if stage != name}
        return replace(
            self,
            targets={**self.targets, name: target},
            files={**self.files, **files},
            parity=parity,
            prices=prices,
            devices=devices,
        )

    def with_parity(self, stage: str, figures: Mapping[str, Any]) -> "Manifest":
        """Note what `verify` measured for one stage."""
        return replace(self, parity={**self.parity, stage: dict(figures)})

    def with_price(self, target: str, figures: Mapping[str, float]) -> "Manifest":
        """Note what a target loses against fp32."""
        return replace(self, prices={**self.prices, target: dict(figures)})

    def with_device(self, target: str, level: str, figures: Mapping[str, float]) -> "Manifest":
        """Note what a card made of a target's plans."""
        return replace(self, devices={**self.devices, target: {"level": level, **figures}})

    def write(self, folder: Path) -> None:
        """Write `manifest.json` as a whole."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False)
        write_bytes(folder / FILE_NAME, text.encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check `manifest.json`.

        Raises:
            ArtifactError: it is missing, of another format, malformed, or names a path outside.
        """
        path = folder / FILE_NAME
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactError(f"{folder}: no {FILE_NAME}; {_why_missing(folder)}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(fields, dict) or not _is_known(fields.get("format")):
            found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
            raise ArtifactError(
                f"{path}: format {found!r}, expected {FORMAT}; compile the checkpoint again "
                "with this version"
            )
        try:
            manifest = _from_fields(fields)
        except MalformedError as error:
            raise ArtifactError(f"{path}: malformed manifest: {error}") from error
        manifest._check_paths(folder)
        manifest._check_graphs(path)
        manifest._check_embedding(path)
        manifest._check_weights(path)
        return manifest

    def _check_paths(self, folder: Path) -> None:
        table = self.embedding
        named = [*self.graphs.values(), table.path, *([table.scales] if table.scales else [])]
        for target in self.targets.values():
            named += target.paths()
        unlisted = sorted(set(named) - self.files.keys())
        if unlisted:
            raise ArtifactError(f"{folder / FILE_NAME}: {unlisted[0]!r} is used but not in `files`")
        for name in self.files:
            try:
                resolve_inside(folder, name)
            except KimiVLError as error:
                raise ArtifactError(str(error)) from error

    def _check_graphs(self, path: Path) -> None:
        expected = {names.VISION, names.PROJECTOR, names.HEAD}
        expected |= {names.layer_name(layer) for layer in self.layers}
        is_rising = list(self.layers) == sorted(set(self.layers)) and len(self.layers) > 0
        for owner, graphs in self._graph_maps().items():
            if graphs.keys() != expected or not is_rising:
                raise ArtifactError(
                    f"{path}: the graphs of {owner} are {', '.join(sorted(graphs))}; "
                    f"layers {list(self.layers)} need {', '.join(sorted(expected))}"
                )

    def _graph_maps(self) -> dict[str, Mapping[str, str]]:
        lowered = {f"target {name}": target.graphs for name, target in self.targets.items()}
        plans = {
            f"plans of {name}": {
                graph: one.path for one in target.plans.engines.values() for graph in one.graphs
            }
            for name, target in self.targets.items()
            if target.plans is not None
        }
        return {"the export": self.graphs, **lowered, **plans}

    def _check_embedding(self, path: Path) -> None:
        rows, columns = self.embedding.shape
        dtype, scales = self.embedding.dtype, self.embedding.scales
        found = self.files[self.embedding.path].bytes
        expected = rows * columns * TYPE_BYTES[dtype]
        if found != expected:
            raise ArtifactError(
                f"{path}: an embedding table of {rows} x {columns} {dtype} has {expected} bytes, "
                f"its file has {found}"
            )
        if (dtype == "int8") != (scales is not None):
            raise ArtifactError(
                f"{path}: an embedding table of {dtype} with{'' if scales else 'out'} scales"
            )
        if scales is not None and self.files[scales].bytes != 4 * rows:
            raise ArtifactError(
                f"{path}: the scales of {rows} rows have {4 * rows} bytes, their file has "
                f"{self.files[scales].bytes}"
            )

    def _check_weights(self, path: Path) -> None:
        for target, record in self.targets.items():
            for name, one in record.plans.engines.items() if record.plans else ():
                for weight, bound in one.weights.items():
                    end, size = bound.offset + bound.length, self.files[bound.path].bytes
                    if end > size:
                        raise ArtifactError(
                            f"{path}: target {target}, {name}: {weight} ends at byte {end} of "
                            f"{bound.path}, which has {size}"
                        )


def _why_missing(folder: Path) -> str:
    """Tell a folder whose making was begun, which a journal shows, from any other."""
    if any(folder.glob(".*.journal")):
        return (
            "this artifact is unfinished: it is being made, or was stopped; the command that began "
            "it goes on where it was"
        )
    return "this is not a finished artifact folder (make one with `tool.py compile`)"


def _is_known(format_number: object) -> bool:
    return type(format_number) is int and format_number == FORMAT


def _from_fields(value: dict[str, Any]) -> Manifest:
    fields = Fields(value)
    manifest = Manifest(
        source=fields.get("source", dict),
        recipe=fields.get("recipe", str),
        precision=fields.get("precision", dict),
        layers=fields.counts("layers", minimum=0),
        taps=fields.get("taps", bool),
        versions=fields.child("versions").text_map(),
        embedding=read_table(fields.child("embedding")),
        graphs=fields.child("graphs").text_map(),
        files={name: read_file(record) for name, record in fields.child("files").children()},
        targets={name: read_target(record) for name, record in fields.child("targets").children()},
        parity={name: record.numbers() for name, record in fields.child("parity").children()},
        calibration=fields.get("calibration", dict),
        prices={name: record.numbers() for name, record in fields.child("prices").children()},
        devices={name: _device(one) for name, one in fields.child("devices").children()},
        format=fields.get("format", int),
    )
    fields.refuse_unread()
    return manifest


def _device(fields: Fields) -> dict[str, Any]:
    level = fields.get("level", str)
    others = {name: fields.get(name, float) for name in fields.value if name != "level"}
    return {"level": level, **others}
