"""The manifest: what an artifact folder holds, for which targets, and what was measured.

One JSON file, `manifest.json`, the same bytes for the same inputs: no times, no machine names.
Does not know: how a graph runs. See docs/artifact.md for every field.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, KimiVLError
from ..files import resolve_inside, write_bytes
from ..limits import Limits

FORMAT = 1
FILE_NAME = "manifest.json"
MODEL_FOLDER = "model"
"""Subfolder with the checkpoint's own small files: config, tokenizer, template."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TableRecord:
    """A table whose rows are read in place, without a graph."""

    path: str
    dtype: str
    """`float32`, `float16` or `bfloat16`."""
    shape: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """The cache tensors of a target: one per layer, (slots, 1, max tokens, width)."""

    dtype: str
    width: int
    """Numbers per token and layer: latent rank and rotated key."""


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """What one target runs."""

    graphs: Mapping[str, str]
    """Graph name to path."""
    cache: CacheRecord
    limits: Limits
    passes: tuple[str, ...]
    """The lowering, in order."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything known about an artifact folder."""

    source: Mapping[str, Any]
    """Fingerprint of the checkpoint."""
    recipe: str
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
    format: int = FORMAT

    def with_target(
        self, name: str, target: TargetRecord, files: Mapping[str, FileRecord]
    ) -> "Manifest":
        """Add or replace one target; its old figures no longer hold and go."""
        parity = {stage: value for stage, value in self.parity.items() if stage != name}
        return replace(
            self,
            targets={**self.targets, name: target},
            files={**self.files, **files},
            parity=parity,
        )

    def with_parity(self, stage: str, figures: Mapping[str, Any]) -> "Manifest":
        """Note what `verify` measured for one stage."""
        return replace(self, parity={**self.parity, stage: dict(figures)})

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
            raise ArtifactError(
                f"{folder}: no {FILE_NAME}; this is not a finished artifact folder "
                "(make one with `tool.py compile`)"
            ) from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
            raise ArtifactError(
                f"{path}: format {found!r}, expected {FORMAT}; compile the checkpoint again "
                "with this version"
            )
        try:
            manifest = _from_fields(fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path}: malformed manifest: {error!r}") from error
        manifest._check_paths(folder)
        return manifest

    def _check_paths(self, folder: Path) -> None:
        named = [*self.graphs.values(), self.embedding.path]
        named += [path for target in self.targets.values() for path in target.graphs.values()]
        unlisted = sorted(set(named) - self.files.keys())
        if unlisted:
            raise ArtifactError(f"{folder / FILE_NAME}: {unlisted[0]!r} is used but not in `files`")
        for name in self.files:
            try:
                resolve_inside(folder, name)
            except KimiVLError as error:
                raise ArtifactError(str(error)) from error


def _from_fields(fields: dict[str, Any]) -> Manifest:
    embedding = fields["embedding"]
    return Manifest(
        source=dict(fields["source"]),
        recipe=str(fields["recipe"]),
        layers=tuple(int(layer) for layer in fields["layers"]),
        taps=bool(fields["taps"]),
        versions=dict(fields["versions"]),
        embedding=TableRecord(**{**embedding, "shape": tuple(embedding["shape"])}),
        graphs=dict(fields["graphs"]),
        files={name: FileRecord(**record) for name, record in fields["files"].items()},
        targets={name: _target(record) for name, record in fields["targets"].items()},
        parity=dict(fields["parity"]),
    )


def _target(fields: dict[str, Any]) -> TargetRecord:
    return TargetRecord(
        graphs=dict(fields["graphs"]),
        cache=CacheRecord(**fields["cache"]),
        limits=Limits(**fields["limits"]),
        passes=tuple(fields["passes"]),
    )
