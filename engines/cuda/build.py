"""What target `cuda` runs: every graph lowered, and layers and head joined into one."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from export.graph.journal import Journal, key_of
from runtime import names
from runtime.artifact.records import TargetRecord
from runtime.progress import Progress

from ..cache_layout import cache_record
from ..job import STAGE, Job, file_name, load_graph, write_graph, write_lowered
from ..lowering import Pass, lower
from ..targets import TARGETS
from .decoder import join_decoder
from .passes import joined_passes, passes

_JOINING = "join-decoder-1"
"""What is done after the passes; a new number where that changes."""


@dataclass(frozen=True)
class CudaBuild:
    """Satisfies `TargetBuild`."""

    job: Job

    @property
    def steps(self) -> list[Pass]:
        """The passes; what they do follows from what they find in a graph."""
        return passes()

    @cached_property
    def key(self) -> str:
        """Follows from graphs and passes; limits are the runtime's alone."""
        made = [*(step.name for step in self.steps), _JOINING]
        made += [step.name for step in joined_passes()]
        return key_of({"target": self.job.target, "passes": made, "neutral": self.job.neutral})

    def make(self, journal: Journal, progress: Progress) -> TargetRecord:
        """Lower all graphs, then join those of the decoder and lower what only then is one."""
        job, steps = self.job, self.steps
        total = len(job.manifest.graphs) + 1
        graphs = {}
        for done, name in enumerate(job.manifest.graphs, start=1):
            graphs[name] = write_lowered(job, name, steps, journal)
            progress(STAGE, done, total)
        decoder = Path(graphs[names.HEAD]).with_name(
            f"{names.DECODER}.{file_name(job.target)}.onnx"
        )
        place = decoder.as_posix()
        journal.ensure(place, lambda path: write_graph(path, self._joined(graphs)))
        progress(STAGE, total, total)
        base = TARGETS[job.target].cache_type(job.recipe)
        return TargetRecord(
            graphs=graphs,
            cache=cache_record(job.config.decoder, job.recipe.cache, base),
            limits=job.limits,
            passes=tuple(step.name for step in (*steps, *joined_passes())),
            key=self.key,
            decoder=place,
        )

    def _joined(self, graphs: dict[str, str]) -> ir.Model:
        job = self.job
        layers = [
            load_graph(job.folder / graphs[names.layer_name(number)])
            for number in job.manifest.layers
        ]
        head = load_graph(job.folder / graphs[names.HEAD])
        return lower(join_decoder(layers, head, names.DECODER), joined_passes()).model
