"""What a target of TensorRT runs: lowered graphs, a plan for each kind of them, bound weights.

Weights are inputs of a plan, so that all layers of a kind share one (`--weights external`), or they
lie in it, and every graph has its own (`embedded`).
"""

import contextlib
import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from export.graph.journal import Journal, key_of
from export.recipe.sizes import parameters
from runtime import __version__, names
from runtime.artifact.records import (
    CacheRecord,
    FileRecord,
    PlanRecord,
    PlansRecord,
    TargetRecord,
)
from runtime.cuda import Cuda
from runtime.engine.gpu.device import CudaDevice
from runtime.files import write_bytes
from runtime.progress import Progress

from ..cache_layout import cache_record
from ..job import Job, file_name, write_graph, write_lowered
from ..kernels.quick_plugins import register_quick_plugin
from ..lowering import Pass
from .audit import audit_plan, check_audit, wanted_by
from .builder import build_plan
from .forms import experts_form, plugin_ops
from .home import Home
from .network import parse_network
from .passes import LoweringOptions, passes
from .passes.external_weights import ExternalWeights
from .passes.plugin_experts import PluginExperts
from .passes.quick_nodes import QuickNodes
from .profiles import usual_shapes
from .report import plan_report
from .shapes import graph_profiles
from .sm import BuildTarget, parse_target
from .sources import Source, embedded_source, external_source, group_graphs

ENGINES_FOLDER = "engines"


@dataclass(frozen=True)
class TensorRTBuild:
    """Satisfies `TargetBuild`."""

    job: Job

    @cached_property
    def key(self) -> str:
        """Follows from graphs, recipe, limits, options, and the versions of everything."""
        job = self.job
        return key_of(
            {
                "target": self.target.name,
                "sms": list(self.sms),
                "neutral": job.neutral,
                "precision": job.recipe.values(),
                "limits": asdict(job.limits),
                "plans": asdict(job.options.plans),
                "passes": self._names,
                "versions": [self.home.title, self.home.polygraphy_version, *self._our_versions()],
            }
        )

    def _our_versions(self) -> list[str]:
        """Versions of this toolkit, and of what compiles kernels where there are some."""
        found = [__version__]
        if PluginExperts.name in self._names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append(importlib.metadata.version("triton"))
        return found

    @cached_property
    def target(self) -> BuildTarget:
        """What is built for."""
        return parse_target(self.job.target)

    @cached_property
    def home(self) -> Home:
        """The TensorRT that builds."""
        return Home.load(self.target.home)

    @cached_property
    def sms(self) -> tuple[int, ...]:
        """Compute capabilities that are built for; with `trt` that of the GPU at hand.

        Raises:
            UnsupportedError: there is no GPU, and `trt` needs one.
        """
        return self.target.sms or (CudaDevice(Cuda.load()).sm,)

    @cached_property
    def cache(self) -> CacheRecord:
        """The cache tensors of a layer: whole rows in the recipe's base type."""
        return cache_record(self.job.config.decoder, None, self.job.recipe.base)

    @cached_property
    def steps(self) -> list[Pass]:
        """The lowering, but for what takes weights out: lowered graphs run with them."""
        plans, sms = self.job.options.plans, self.sms
        options = LoweringOptions(
            max_tokens=self.job.limits.max_tokens,
            sms=sms,
            experts=experts_form(self.job.recipe, sms, use_plugins=plans.use_plugins),
            weights=plans.weights,
        )
        return [step for step in passes(options) if step.name != ExternalWeights.name]

    @cached_property
    def _plan_steps(self) -> list[Pass]:
        """Passes of what is built that the lowered graphs on disk do not go through."""
        if not self.job.options.plans.use_quick_plugins or PluginExperts.name not in self._names:
            return []
        ops = plugin_ops(self.job.config.decoder, self.job.recipe)
        for op in ops:
            _register_once(self.home.trt, op, self.sms[0])
        return [QuickNodes(ops)]

    @property
    def _names(self) -> list[str]:
        return [step.name for step in self.steps]

    def make(self, journal: Journal, progress: Progress) -> TargetRecord:
        """Lower all graphs, then build a plan for each kind."""
        job = self.job
        graphs = {}
        for done, name in enumerate(job.manifest.graphs, start=1):
            graphs[name] = write_lowered(job, name, self.steps, journal)
            progress("lower", done, len(job.manifest.graphs))
        engines, shares = {}, []
        for sources in self._kinds(graphs):
            shares.append(self._ensure_plan(sources, journal, progress))
            path = self._path(sources[0], "plan")
            for one in sources:
                engines[one.graphs[0]] = PlanRecord(
                    path=path, graphs=one.graphs, weights=one.weights
                )
        return TargetRecord(
            graphs=graphs,
            cache=self.cache,
            limits=job.limits,
            passes=tuple(self._names),
            key=self.key,
            plans=PlansRecord(
                package=self.home.trt.__name__,
                version=self.home.version,
                sms=tuple(f"sm{sm}" for sm in self.sms),
                engines=engines,
                wanted_precision=min(shares),
            ),
        )

    def _kinds(self, graphs: Mapping[str, str]) -> list[list[Source]]:
        """Put sources together that differ in nothing but their weights: one plan runs them."""
        job, found = self.job, dict[str, list[Source]]()
        size, layers = job.options.plans.layers_per_engine, job.manifest.layers
        ordered = sorted(graphs, key=_order)
        for group in group_graphs(ordered, job.config.decoder, layers, size):
            if job.options.plans.weights == "external":
                paths = {name: graphs[name] for name in group}
                source = external_source(job.folder, paths, self._plan_steps)
            else:
                source = embedded_source(group[0], graphs[group[0]])
            found.setdefault(source.key, []).append(source)
        return list(found.values())

    def _ensure_plan(
        self, sources: Sequence[Source], journal: Journal, progress: Progress
    ) -> float:
        """Build the plan of a kind if it is not there; give its share in the wanted precision."""
        first = sources[0]
        plan, report = self._path(first, "plan"), self._path(first, "json")
        graph, model = first.path, first.model
        if model is not None:
            graph = self._path(first, "onnx")
            journal.ensure(graph, lambda path: write_graph(path, model))
        journal.ensure(plan, partial(self._build, sources, self.job.folder / graph, progress))
        journal.ensure(report, FileRecord.of)
        text = (self.job.folder / report).read_text(encoding="utf-8")
        return float(json.loads(text)["wanted_precision"])

    def _build(
        self, sources: Sequence[Source], graph: Path, progress: Progress, path: Path
    ) -> FileRecord:
        """Build a plan, judge its precision, and write the report beside it."""
        job, plans, first = self.job, self.job.options.plans, sources[0]
        parsed = parse_network(self.home, graph)
        is_shared = plans.weights == "external"
        profiles = graph_profiles(
            first.graphs, job.config, self.cache, job.limits, is_shared=is_shared
        )
        plan = build_plan(parsed, self.target, profiles, path, progress)
        audit = audit_plan(parsed, plan, usual_shapes(profiles[0]), first.weights)
        of_graph = [one for one in parameters(job.config) if one.graph == first.graphs[0]]
        wanted = wanted_by(job.recipe, of_graph)
        check_audit(audit, wanted, plans.min_precision)
        graphs = [name for one in sources for name in one.graphs]
        report = plan_report(plan, audit, wanted, profiles, graphs=graphs)
        write_bytes(path.with_suffix(".json"), json.dumps(report, indent=1).encode() + b"\n")
        return FileRecord(bytes=plan.size_bytes, sha256=plan.sha256)

    def _path(self, source: Source, suffix: str) -> str:
        return f"{ENGINES_FOLDER}/{file_name(self.job.target)}/{source.graphs[0]}.{suffix}"


_register_once = functools.cache(register_quick_plugin)


def _order(graph: str) -> tuple[int, str]:
    """Sort graphs in the order of the data."""
    places = {names.VISION: 0, names.PROJECTOR: 1, names.HEAD: 3}
    return places.get(graph, 2), graph
