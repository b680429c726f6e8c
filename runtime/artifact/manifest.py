"""The manifest: what an artifact folder holds, for which targets, and what was measured.

One JSON file, `manifest.json`, the same bytes for the same inputs: no times, no machine names.
Does not know: how a graph runs. See docs/artifact.md for every field.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from .. import names
from ..errors import ArtifactError, KimiVLError
from ..files import resolve_inside, write_bytes
from ..limits import Limits

FORMAT = 3
FILE_NAME = "manifest.json"
MAX_COUNT = (1 << 31) - 1
"""No number of tokens, slots, patches, rows or layers is larger."""
MAX_BYTES = 1 << 48
"""No file is larger, and no layer's cache."""
MODEL_FOLDER = "model"
"""Subfolder with the checkpoint's own small files: config, tokenizer, template."""

_T = TypeVar("_T")
TYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Types of tables and cache tensors, and the bytes of one number."""


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
    """One of `TYPE_BYTES`."""
    shape: tuple[int, int]
    scales: str | None = None
    """Path of one fp32 number for each row, which an int8 table is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class CacheTensor:
    """One cache tensor of every layer: (slots, 1, max tokens, width)."""

    dtype: str
    """One of `TYPE_BYTES`."""
    width: int
    """Numbers per token and layer."""


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """The cache of a target."""

    tensors: Mapping[str, CacheTensor]
    """By the name of the layers' input."""

    @property
    def token_bytes(self) -> int:
        """Bytes per token and layer."""
        return sum(TYPE_BYTES[one.dtype] * one.width for one in self.tensors.values())


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
    format: int = FORMAT

    def with_target(
        self, name: str, target: TargetRecord, files: Mapping[str, FileRecord]
    ) -> "Manifest":
        """Add or replace one target; its old figures no longer hold and go."""
        parity = {stage: value for stage, value in self.parity.items() if stage != name}
        prices = {stage: value for stage, value in self.prices.items() if stage != name}
        return replace(
            self,
            targets={**self.targets, name: target},
            files={**self.files, **files},
            parity=parity,
            prices=prices,
        )

    def with_parity(self, stage: str, figures: Mapping[str, Any]) -> "Manifest":
        """Note what `verify` measured for one stage."""
        return replace(self, parity={**self.parity, stage: dict(figures)})

    def with_price(self, target: str, figures: Mapping[str, float]) -> "Manifest":
        """Note what a target loses against fp32."""
        return replace(self, prices={**self.prices, target: dict(figures)})

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
        except _MalformedError as error:
            raise ArtifactError(f"{path}: malformed manifest: {error}") from error
        manifest._check_paths(folder)
        manifest._check_graphs(path)
        manifest._check_embedding(path)
        return manifest

    def _check_paths(self, folder: Path) -> None:
        table = self.embedding
        named = [*self.graphs.values(), table.path, *([table.scales] if table.scales else [])]
        named += [path for target in self.targets.values() for path in target.graphs.values()]
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
        return {"the export": self.graphs, **lowered}

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


class _MalformedError(Exception):
    """A field of the manifest is not what it must be."""


class _Fields:
    """One JSON object of the manifest; every reading checks the type."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise _MalformedError(f"`{where}` must be an object, found {type(value).__name__}")
        self.value: dict[str, Any] = value
        self.where = where

    def get(self, name: str, kind: type[_T]) -> _T:
        """Return a value of exactly this type: `true` is not a number."""
        if name not in self.value:
            raise _MalformedError(f"`{self._path(name)}` is missing")
        value = self.value[name]
        if type(value) is not kind:
            found = type(value).__name__
            raise _MalformedError(f"`{self._path(name)}` must be {kind.__name__}, found {found}")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None where the value is null."""
        return None if self.value.get(name, "") is None else self.get(name, str)

    def count(self, name: str, *, minimum: int = 1, maximum: int = MAX_COUNT) -> int:
        """Return a whole number in a range."""
        value = self.get(name, int)
        if not minimum <= value <= maximum:
            where = self._path(name)
            raise _MalformedError(f"`{where}` must be from {minimum} to {maximum}, is {value}")
        return value

    def counts(self, name: str, *, minimum: int) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        numbered = {str(i): value for i, value in enumerate(self.get(name, list))}
        items = _Fields(numbered, self._path(name))
        return tuple(items.count(key, minimum=minimum) for key in numbered)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        numbered = {str(i): value for i, value in enumerate(self.get(name, list))}
        return tuple(_Fields(numbered, self._path(name)).text_map().values())

    def child(self, name: str) -> "_Fields":
        """Return an object in this object."""
        return _Fields(self.get(name, dict), self._path(name))

    def children(self) -> Iterator[tuple[str, "_Fields"]]:
        """Yield every value, each an object."""
        return ((name, self.child(name)) for name in self.value)

    def text_map(self) -> dict[str, str]:
        """Return all values, each a string."""
        return {name: self.get(name, str) for name in self.value}

    def numbers(self) -> dict[str, float]:
        """Return all values, each a number with a fraction."""
        return {name: self.get(name, float) for name in self.value}

    def _path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def _is_known(format_number: object) -> bool:
    return type(format_number) is int and format_number == FORMAT


def _from_fields(value: dict[str, Any]) -> Manifest:
    fields = _Fields(value)
    return Manifest(
        source=fields.get("source", dict),
        recipe=fields.get("recipe", str),
        precision=fields.get("precision", dict),
        layers=fields.counts("layers", minimum=0),
        taps=fields.get("taps", bool),
        versions=fields.child("versions").text_map(),
        embedding=_table(fields.child("embedding")),
        graphs=fields.child("graphs").text_map(),
        files={name: _file(record) for name, record in fields.child("files").children()},
        targets={name: _target(record) for name, record in fields.child("targets").children()},
        parity={name: record.numbers() for name, record in fields.child("parity").children()},
        calibration=fields.get("calibration", dict),
        prices={name: record.numbers() for name, record in fields.child("prices").children()},
    )


def _table(fields: _Fields) -> TableRecord:
    dtype, shape = fields.get("dtype", str), fields.counts("shape", minimum=1)
    if dtype not in TYPE_BYTES or len(shape) != 2:
        raise _MalformedError(f"`{fields.where}` is a table of {len(shape)} axes of {dtype!r}")
    return TableRecord(
        path=fields.get("path", str),
        dtype=dtype,
        shape=(shape[0], shape[1]),
        scales=fields.optional_text("scales"),
    )


def _file(fields: _Fields) -> FileRecord:
    return FileRecord(
        bytes=fields.count("bytes", minimum=0, maximum=MAX_BYTES),
        sha256=fields.get("sha256", str),
    )


def _target(fields: _Fields) -> TargetRecord:
    sizes = fields.child("limits")
    limits = Limits(
        max_tokens=sizes.count("max_tokens"),
        max_input_tokens=sizes.count("max_input_tokens"),
        max_slots=sizes.count("max_slots"),
        max_patches=sizes.count("max_patches"),
        prefill_chunk=sizes.count("prefill_chunk"),
    )
    if max(limits.max_input_tokens, limits.prefill_chunk) > limits.max_tokens:
        raise _MalformedError(f"`{sizes.where}`: a prompt or chunk is larger than `max_tokens`")
    cache = _cache(fields.child("cache"))
    if limits.max_slots * limits.max_tokens * cache.token_bytes > MAX_BYTES:
        raise _MalformedError(f"`{fields.where}`: a cache that no machine can hold")
    return TargetRecord(
        graphs=fields.child("graphs").text_map(),
        cache=cache,
        limits=limits,
        passes=fields.texts("passes"),
    )


def _cache(fields: _Fields) -> CacheRecord:
    tensors = {}
    for name, one in fields.child("tensors").children():
        tensors[name] = CacheTensor(dtype=one.get("dtype", str), width=one.count("width"))
        if tensors[name].dtype not in TYPE_BYTES:
            raise _MalformedError(f"`{one.where}` is of type {tensors[name].dtype!r}")
    if names.CACHE not in tensors:
        raise _MalformedError(f"`{fields.where}.tensors.{names.CACHE}` is missing")
    return CacheRecord(tensors=tensors)
