"""What a benchmark found, with names for machines; see docs/benchmarking.md for each."""

from dataclasses import asdict, dataclass
from typing import Any

from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import FILE_NAME
from runtime.files import sha256_of

from .cold_start import ColdStart
from .images import ImageSize, TimedImage
from .machine import describe_machine, describe_versions
from .memory import Resident
from .page_cache import CachedFiles
from .roof import Roof
from .samples import Spread
from .timing import Timed, TimedRow

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Start:
    """A fresh process up to its first token."""

    times: ColdStart
    image: ImageSize | None
    """What it was asked about."""
    cached: CachedFiles
    """Of the target's files, before it started."""

    def fields(self) -> dict[str, Any]:
        """Name the figures."""
        return {
            **self.times.fields(),
            "image": None if self.image is None else str(self.image),
            "files_bytes": self.cached.bytes,
            "page_cache_share": self.cached.share,
        }


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the measuring process held."""

    idle: Resident
    """Before the engine was opened."""
    peak: Resident


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one run measured."""

    artifact: Artifact
    target: str
    repeats: int
    threads: int
    weights: str
    start: Start
    timed: Timed
    memory: Memory
    roof: Roof | None
    """None where the target does not run on this processor."""
    load_average: float
    """Before the run, over one minute."""
    left_out: tuple[str, ...]

    def share(self, timed: TimedRow) -> float | None:
        """Tell how much of what memory allows a row reaches."""
        limit = None if self.roof is None else self.roof.tokens_per_s(timed.row)
        return None if limit is None else timed.tokens_per_s.mean / limit

    def cache_bytes(self) -> dict[str, int]:
        """Compute what the latent cache takes: a token of a slot, and all slots."""
        record = self.artifact.target(self.target)
        token = record.cache.token_bytes * len(self.artifact.manifest.layers)
        total = token * record.limits.max_tokens * record.limits.max_slots
        return {"cache_token_bytes": token, "cache_bytes": total}

    def fields(self) -> dict[str, Any]:
        """Name everything, every sample included."""
        return {
            "format": FORMAT,
            "artifact": self._artifact_fields(),
            "settings": {
                "threads": self.threads,
                "cpu_weights": self.weights,
                "repeats": self.repeats,
            },
            "machine": {**describe_machine(), "load_average": self.load_average},
            "versions": describe_versions(),
            "cold_start": self.start.fields(),
            "images": [_image_fields(one) for one in self.timed.images],
            "rows": [self._row_fields(one) for one in self.timed.rows],
            "memory": {
                "idle_anonymous_bytes": self.memory.idle.anonymous,
                "peak_anonymous_bytes": self.memory.peak.anonymous,
                "peak_file_bytes": self.memory.peak.file,
                **self.cache_bytes(),
            },
            "bandwidth": self._bandwidth_fields(),
            "disturbance": self.timed.disturbance.fields(),
            "left_out": list(self.left_out),
        }

    def _artifact_fields(self) -> dict[str, Any]:
        manifest, record = self.artifact.manifest, self.artifact.target(self.target)
        return {
            "folder": str(self.artifact.folder),
            "manifest_sha256": sha256_of(self.artifact.folder / FILE_NAME),
            "recipe": manifest.recipe,
            "layers": list(manifest.layers),
            "target": self.target,
            "key": record.key,
            "limits": asdict(record.limits),
        }

    def _row_fields(self, timed: TimedRow) -> dict[str, Any]:
        row, roof = timed.row, self.roof
        return {
            "name": row.name,
            **asdict(row),
            "tokens_per_s": timed.tokens_per_s.fields(),
            "ms_per_token": timed.ms_per_token.fields(),
            "moved_bytes_per_token": None if roof is None else roof.moved_bytes(row),
            "limit_tokens_per_s": None if roof is None else roof.tokens_per_s(row),
            "limit_share": self.share(timed),
            "disturbance": timed.disturbance.fields(),
            "samples_s": [list(one) for one in timed.samples_s],
        }

    def _bandwidth_fields(self) -> dict[str, Any] | None:
        if self.roof is None:
            return None
        found = self.roof.bandwidth
        return {"gb_s": found.median, "reader": found.reader, "samples_gb_s": list(found.samples)}


def _image_fields(timed: TimedImage) -> dict[str, Any]:
    return {
        "name": f"vit {timed.size}",
        "width": timed.size.width,
        "height": timed.size.height,
        "patches": timed.patches,
        "image_tokens": timed.image_tokens,
        "patch_ms": 1000 * timed.patch_s,
        "ms": Spread.of([1000 * one for one in timed.samples_s]).fields(),
        "samples_s": list(timed.samples_s),
    }
