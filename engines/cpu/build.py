"""What target `cpu` runs: every graph lowered for ONNX Runtime, over the neutral weights."""

from dataclasses import dataclass
from functools import cached_property

from export.graph.journal import Journal, key_of
from runtime.artifact.records import TargetRecord
from runtime.progress import Progress

from ..cache_layout import cache_record
from ..job import STAGE, Job, write_lowered
from ..lowering import Pass
from ..targets import TARGETS
from .passes import passes


@dataclass(frozen=True)
class CpuBuild:
    """Satisfies `TargetBuild`."""

    job: Job

    @property
    def steps(self) -> list[Pass]:
        """The passes for the artifact's recipe."""
        return passes(may_round_activations=self.job.recipe.may_round_activations)

    @cached_property
    def key(self) -> str:
        """Follows from graphs and passes; limits are the runtime's alone."""
        names = [step.name for step in self.steps]
        return key_of({"target": self.job.target, "passes": names, "neutral": self.job.neutral})

    def make(self, journal: Journal, progress: Progress) -> TargetRecord:
        """Lower all graphs."""
        job, steps = self.job, self.steps
        graphs = {}
        for done, name in enumerate(job.manifest.graphs, start=1):
            graphs[name] = write_lowered(job, name, steps, journal)
            progress(STAGE, done, len(job.manifest.graphs))
        base = TARGETS[job.target].cache_type(job.recipe)
        return TargetRecord(
            graphs=graphs,
            cache=cache_record(job.config.decoder, job.recipe.cache, base),
            limits=job.limits,
            passes=tuple(step.name for step in steps),
            key=self.key,
        )
