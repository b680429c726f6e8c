"""The benchmark of one artifact, in order: start, bandwidth, images, rows, bandwidth again."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from runtime.artifact.folder import CONFIG_FILE, Artifact
from runtime.artifact.records import TargetRecord
from runtime.config import KimiVLConfig
from runtime.cores import thread_count
from runtime.engine.cpu.weights_place import WeightsPlace
from runtime.engine.opening import open_engine
from runtime.errors import InputError
from runtime.progress import Progress, silent
from runtime.prompt.patches import ImageRule

from ..cpu.traffic import Traffic
from .bandwidth import measure_bandwidth
from .cold_start import measure_cold_start
from .images import ImageSize, choose_sizes
from .machine import last_cache_bytes
from .memory import MemoryWatch, resident
from .page_cache import look_at
from .report import Memory, Report, Start
from .roof import Roof
from .rows import Row, Wanted, choose_rows
from .timing import Timed, time_all

_START = "start of a fresh process"
"""The stage, as progress is told of it."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and how."""

    target: str = "cpu"
    rows: Wanted = field(default_factory=Wanted)
    images: tuple[ImageSize, ...] | None = None
    """None: the usual ones that fit. Empty: none."""
    repeats: int = 5
    num_threads: int | None = None
    """Cores; all that this process may use, if None."""
    weights: WeightsPlace = "auto"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A benchmark that is chosen and not run: everything that can be refused was."""

    artifact: Artifact
    options: BenchOptions
    rule: ImageRule
    rows: list[Row]
    sizes: list[ImageSize]
    left_out: list[str]
    """A phrase for each usual row or image that does not fit."""

    @classmethod
    def choose(cls, folder: Path, options: BenchOptions) -> "Bench":
        """Open an artifact and choose what fits its limits.

        Raises:
            ArtifactError: the artifact is altered or not built for the target.
            CapacityError: nothing fits, or nothing of what was asked for.
            InputError: a number is below what it counts.
        """
        if options.repeats < 1:
            raise InputError(f"--repeats: at least 1, found {options.repeats}")
        artifact = Artifact.open(folder)
        limits = artifact.target(options.target).limits
        rule = ImageRule.load(artifact.model_folder)
        config = KimiVLConfig.load(artifact.model_folder / CONFIG_FILE)
        rows = choose_rows(options.rows, limits, config.decoder.max_positions)
        sizes = choose_sizes(options.images, rule, limits)
        return cls(
            artifact=artifact,
            options=options,
            rule=rule,
            rows=rows.rows,
            sizes=sizes.sizes,
            left_out=[*sizes.left_out, *rows.left_out],
        )

    @property
    def record(self) -> TargetRecord:
        """What the target runs."""
        return self.artifact.target(self.options.target)

    def run(self, progress: Progress = silent) -> Report:
        """Measure everything; minutes at the released sizes.

        Raises:
            CapacityError: memory is too small.
            KimiVLError: the process of the cold start failed.
        """
        load_average = os.getloadavg()[0]
        progress(_START, 0, 1)
        start = self._measure_start()
        progress(_START, 1, 1)
        is_on_cpu = not self.record.needs_gpu
        threads = thread_count(self.options.num_threads)
        before = measure_bandwidth(threads=threads) if is_on_cpu else None
        idle = resident()
        with MemoryWatch() as watch:
            timed = self._time_engine(progress)
        roof = None
        if before is not None:
            roof = Roof(
                traffic=Traffic.of(self.artifact, self.options.target),
                bandwidth=before.plus(measure_bandwidth(threads=threads)),
                last_cache_bytes=last_cache_bytes(),
            )
        return Report(
            artifact=self.artifact,
            target=self.options.target,
            repeats=self.options.repeats,
            threads=threads,
            weights=self.options.weights,
            start=start,
            timed=timed,
            memory=Memory(idle=idle, peak=watch.peak),
            roof=roof,
            load_average=load_average,
            left_out=tuple(self.left_out),
        )

    def _measure_start(self) -> Start:
        options = self.options
        cached = look_at(self._files())
        size = self.sizes[0] if self.sizes else None
        wishes = {
            "target": options.target,
            "num_threads": options.num_threads,
            "weights": options.weights,
        }
        times = measure_cold_start(self.artifact.folder, size, wishes)
        return Start(times=times, image=size, cached=cached)

    def _time_engine(self, progress: Progress) -> Timed:
        """Keep the engine open for as long as it is timed."""
        options = self.options
        return time_all(
            open_engine(
                self.artifact,
                options.target,
                num_threads=options.num_threads,
                weights=options.weights,
            ),
            self.rows,
            self.sizes,
            vocab_size=self.artifact.manifest.embedding.shape[0],
            rule=self.rule,
            repeats=options.repeats,
            progress=progress,
        )

    def _files(self) -> set[Path]:
        """Collect what the target reads: graphs or plans, their weights, the embedding table."""
        folder, table = self.artifact.folder, self.artifact.manifest.embedding
        found = {folder / path for path in (*self.record.paths(), table.path)}
        for graph in self.record.graphs.values():
            if self.record.plans is None:
                found |= _weights_of(folder / graph)
        return found


def _weights_of(graph: Path) -> set[Path]:
    """Name the files that hold a graph's weights."""
    values = ir.load(graph).graph.initializers.values()
    tensors = (value.const_value for value in values)
    return {Path(one.path) for one in tensors if isinstance(one, ir.ExternalTensor)}
