"""What the manifest says of single things: files, tables, caches, targets.

Does not know: JSON, the folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files import sha256_of
from ..limits import Limits

TYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Types of tables and cache tensors, and the bytes of one number."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Measure and hash a file that is there."""
        return cls(bytes=path.stat().st_size, sha256=sha256_of(path))


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
class BoundWeight:
    """Bytes of a weights file that an input of a plan is bound to."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """One engine: a plan, which others may share, and the weights of the graphs that it runs."""

    path: str
    graphs: tuple[str, ...]
    """One, or several layers in order."""
    weights: Mapping[str, BoundWeight]
    """By the name of the input; empty if the plan holds them."""


@dataclass(frozen=True, kw_only=True)
class PlansRecord:
    """The plans of a target of TensorRT."""

    package: str
    """`tensorrt_rtx` or `tensorrt`."""
    version: str
    """Of the package: a plan is read by the version that made it."""
    sms: tuple[str, ...]
    """Compute capabilities that they were built for: `sm89`."""
    engines: Mapping[str, PlanRecord]
    """By the name of their first graph, which sorts in the order of the layers."""
    wanted_precision: float
    """Least share, of all plans, of the multiply-adds that are done as the recipe says."""


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """What one target runs."""

    graphs: Mapping[str, str]
    """Graph name to path."""
    cache: CacheRecord
    limits: Limits
    passes: tuple[str, ...]
    """The lowering, in order."""
    key: str
    """Hash of everything that its files follow from; the same key, the same files."""
    plans: PlansRecord | None = None
    """Of targets of TensorRT; None where the graphs themselves run."""
    decoder: str | None = None
    """Path of the graph of all layers and the head; None where they run one by one."""

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on nothing else."""
        return self.plans is not None or self.decoder is not None

    def paths(self) -> list[str]:
        """List all files that it names."""
        found = [*self.graphs.values(), *([self.decoder] if self.decoder else [])]
        if self.plans is not None:
            for one in self.plans.engines.values():
                found += [one.path, *(weight.path for weight in one.weights.values())]
        return found
