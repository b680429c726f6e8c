"""The model, one graph at a time, over all samples: observed, quantised, compared.

Each graph's weights are in memory once, alone. What comes out of a graph is written to disk and
read by the next, for the reference (fp32) and for every recipe that is tried. A run that was killed
goes on behind the last finished graph.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal
from export.graphs import DTYPES, EMBEDDING_TENSOR, GraphPlan, plan_graphs
from export.modules.decoder import Taps
from export.quantised.scales_file import GraphScales
from export.quantised.storage import quantised_places
from export.quantised.table import rounded_rows
from export.recipe.recipe import Recipe
from export.sources import Source, load_parameters, parameter_sources
from runtime import names
from runtime.artifact.records import FileRecord
from runtime.files import write_bytes
from runtime.progress import Progress, silent

from ..price.distance import Distance, Reference
from ..price.figures import by_turn, price
from ..scales.choose import Chooser
from ..scales.observe import Observer
from ..scales.rounding import round_cache, round_inputs
from .compare import Comparison, weight_errors
from .rows import Rows, RowsReader
from .runs import Samples, embed, run_head, run_layer, run_vision, tail_shape

STAGE = "calibrate"
REFERENCE = "reference"

Result = tuple[Tensor, Taps | None]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One way of all samples through the model, for any number of recipes."""

    checkpoint: Checkpoint
    folder: Path
    """Where the results go: `stats/`, `scales/RECIPE/`, `reference.safetensors`, `work/`."""
    samples: Samples
    recipes: Sequence[Recipe]
    """Names must differ."""
    layers: Sequence[int]
    min_expert_tokens: int
    progress: Progress = silent
    stage: str = STAGE
    """What it is called in the progress."""

    def plans(self) -> dict[str, GraphPlan]:
        """All graphs by name, in fp32 and with taps."""
        config = self.checkpoint.config
        plans = plan_graphs(config, torch.float32, self.layers, taps=True)
        return {plan.name: plan for plan in plans}

    def run(self, journal: Journal, root: Path) -> dict[str, Any]:
        """Do all graphs that are not done yet; returns what was found, by graph.

        Args:
            journal: of the stage.
            root: the folder that the journal's names are relative to.
        """
        stats: dict[str, Any] = {}
        plans = self.plans()
        previous: str | None = None
        steps = _with_embedding(list(plans))
        for done, graph in enumerate(steps):
            self.progress(self.stage, done, len(steps))
            path = self.folder / "stats" / f"{graph}.json"
            step = _Step(self, graph, plans.get(graph), previous, stats)
            journal.ensure(path.relative_to(root).as_posix(), step.make)
            stats[graph] = json.loads(path.read_text(encoding="utf-8"))
            if previous is not None:
                self.forget(previous)
            previous = graph
        self.progress(self.stage, len(steps), len(steps))
        return stats

    def rows(self, graph: str, stream: str) -> Rows:
        """The file of one stream behind a graph; a recipe's holds the judged items alone."""
        first = 0 if stream == REFERENCE else self.samples.first_held_out(graph)
        return Rows(
            path=self.folder / "work" / f"{graph}.{stream}.rows",
            counts=self.samples.counts(graph)[first:],
            tail=tail_shape(graph, self.checkpoint.config),
        )

    def scales_path(self, recipe: str, graph: str) -> Path:
        """Where the scales of one graph are."""
        return self.folder / "scales" / recipe / f"{graph}.safetensors"

    def forget(self, graph: str) -> None:
        """Remove the rows behind a graph, once the next one is done."""
        for stream in (REFERENCE, *(recipe.name for recipe in self.recipes)):
            self.rows(graph, stream).path.unlink(missing_ok=True)


def _with_embedding(graphs: list[str]) -> list[str]:
    """Put the embedding behind the projector: no graph, but a step of the way."""
    place = graphs.index(names.PROJECTOR) + 1
    return [*graphs[:place], names.EMBEDDING, *graphs[place:]]


class _Step:
    """One graph of a pass."""

    def __init__(
        self,
        way: Pass,
        graph: str,
        plan: GraphPlan | None,
        previous: str | None,
        stats: Mapping[str, Any],
    ) -> None:
        self.way = way
        self.graph = graph
        self.plan = plan
        self.previous = previous
        self.strayed = dict(stats[previous]["strayed"]) if previous else {}
        """Recipes whose values are no longer the reference's."""
        self.first = way.samples.first_held_out(graph)
        self.count = len(way.samples.counts(graph))
        self.taps: list[Taps | None] = []
        self.reference: list[Reference] = []

    def make(self, path: Path) -> FileRecord:
        """Do everything for this graph and write what was found."""
        found = self._embed() if self.plan is None else self._run_graph(self.plan)
        write_bytes(path, json.dumps(found, indent=1, sort_keys=True).encode() + b"\n")
        return FileRecord.of(path)

    def _embed(self) -> dict[str, Any]:
        table = self.way.checkpoint.tensor(EMBEDDING_TENSOR)
        self._embed_stream(REFERENCE, lambda ids: table[ids].float())
        found: dict[str, Any] = {}
        for recipe in self.way.recipes:
            if recipe.embedding is not None:
                self._embed_stream(recipe.name, lambda ids: rounded_rows(table[ids]))
            elif self.strayed[recipe.name]:
                self._embed_stream(recipe.name, lambda ids: table[ids].float())
            else:
                continue
            found[recipe.name] = self._compare_rows(recipe.name).figures()
        return {
            "strayed": {name: self.strayed[name] or name in found for name in self.strayed},
            "recipes": found,
        }

    def _embed_stream(self, stream: str, rows: Callable[[Tensor], Tensor]) -> None:
        """Write the embedded samples of one stream; a recipe's are the judged ones."""
        strayed = self.strayed.get(stream, False)
        features = self._reader(stream if strayed else REFERENCE)
        some = self.way.samples.all
        image = 0
        if stream != REFERENCE:
            some = some[self.first :]
            image = 0 if strayed else self.way.samples.first_held_out(names.PROJECTOR)
        writer = self.way.rows(self.graph, stream).writer()
        for sample in some:
            end = image + len(sample.images)
            writer.add(embed(sample, rows, [features[i] for i in range(image, end)]))
            image = end
        writer.close()

    def _compare_rows(self, recipe: str) -> Comparison:
        """Compare what a recipe's stream holds behind this graph with the reference."""
        comparison = Comparison()
        found = self.way.rows(self.graph, recipe).reader()
        wanted = self.way.rows(self.graph, REFERENCE).reader()
        for index in range(self.first, self.count):
            comparison.add(found[index - self.first], wanted[index])
        return comparison

    def _run_graph(self, plan: GraphPlan) -> dict[str, Any]:
        checkpoint = self.way.checkpoint
        module = plan.build()
        sources = parameter_sources(module, plan.prefix, checkpoint)
        load_parameters(module, sources)
        observer = Observer(module, max(1, checkpoint.config.decoder.num_experts))
        self._run_reference(module, observer)
        scales = {
            recipe.name: self._choose(module, recipe, observer) for recipe in self.way.recipes
        }
        found: dict[str, Any] = {}
        # Those that leave the weights alone come first: the others change the module.
        for recipe in sorted(self.way.recipes, key=lambda one: bool(scales[one.name])):
            found[recipe.name] = self._run_recipe(module, sources, recipe, scales[recipe.name])
        return {
            "observed": observer.summary(self.way.min_expert_tokens),
            "recipes": found,
            "strayed": {
                recipe.name: self.strayed.get(recipe.name, False)
                or scales[recipe.name] is not None
                or self._has_cache_of(recipe)
                for recipe in self.way.recipes
            },
        }

    def _run_reference(self, module: nn.Module, observer: Observer) -> None:
        before = self._reader(REFERENCE) if self.previous else None
        is_head = self.graph == names.HEAD
        writer = None if is_head else self.way.rows(self.graph, REFERENCE).writer()
        for index in range(self.count):
            if index < self.first:
                with observer.watching(self._is_image(index)):
                    out, _ = self._run_one(module, index, before)
            else:
                out, taps = self._run_one(module, index, before)
                self.taps.append(taps)
                if is_head:
                    self.reference.append(Reference.of(out))
            if writer is not None:
                writer.add(out)
        if writer is not None:
            writer.close()
        elif self.reference:
            Reference.join(self.reference).save(self.way.folder / "reference.safetensors")

    def _choose(self, module: nn.Module, recipe: Recipe, observer: Observer) -> GraphScales | None:
        """Choose and keep the scales of a recipe that quantises something here."""
        if not quantised_places(module, recipe):
            return None
        scales = Chooser(
            module=module,
            recipe=recipe,
            base=DTYPES[recipe.base],
            observations=observer.observations,
            min_expert_tokens=self.way.min_expert_tokens,
        ).choose()
        scales.write(self.way.scales_path(recipe.name, self.graph))
        return scales

    def _run_recipe(
        self, module: nn.Module, sources: list[Source], recipe: Recipe, scales: GraphScales | None
    ) -> dict[str, Any]:
        """Run the judged samples as the recipe has them, and compare with the reference."""
        is_changed = scales is not None or self._has_cache_of(recipe)
        if not is_changed and not self.strayed.get(recipe.name, False):
            return {}
        comparison = Comparison()
        handles = round_cache(module, recipe, self.way.checkpoint.config.decoder.latent_rank)
        if scales is not None:
            comparison.weights = weight_errors(module, sources, recipe, scales)
            handles += round_inputs(module, recipe, scales.inputs)
        distances = self._run_held_out(module, recipe.name, comparison)
        for handle in handles:
            handle.remove()
        found = comparison.figures()
        if distances:
            samples = self.way.samples
            count = len(samples.held_out)
            found["price"] = price(samples.held_out, self.reference[:count], distances[:count])
            found["turns"] = by_turn(samples.turns, self.reference[count:], distances[count:])
        return found

    def _has_cache_of(self, recipe: Recipe) -> bool:
        """Whether this graph keeps a cache as the recipe has it."""
        return recipe.cache is not None and self.plan is not None and self.plan.is_layer

    def _run_held_out(
        self, module: nn.Module, recipe: str, comparison: Comparison
    ) -> list[Distance]:
        strayed = self.strayed.get(recipe, False)
        before = self._reader(recipe if strayed else REFERENCE) if self.previous else None
        offset = self.first if strayed else 0
        is_head = self.graph == names.HEAD
        wanted = None if is_head else self.way.rows(self.graph, REFERENCE).reader()
        writer = None if is_head else self.way.rows(self.graph, recipe).writer()
        distances = []
        for index in range(self.first, self.count):
            out, taps = self._run_one(module, index, before, offset)
            comparison.add_taps(taps, self.taps[index - self.first])
            if wanted is None or writer is None:
                distances.append(Distance.between(self.reference[index - self.first], out))
            else:
                comparison.add(out, wanted[index])
                writer.add(out)
        if writer is not None:
            writer.close()
        return distances

    def _run_one(
        self, module: nn.Module, index: int, before: RowsReader | None, offset: int = 0
    ) -> Result:
        """One item through the graph; `offset` is the number of the first item of `before`."""
        config, samples = self.way.checkpoint.config, self.way.samples
        if before is None:
            return run_vision(module, samples.images[index], config), None
        rows = before[index - offset]
        if self.graph == names.PROJECTOR:
            with torch.no_grad():
                return module(rows), None
        if self.graph == names.HEAD:
            judged = torch.from_numpy(samples.all[index].judged)
            return run_head(module, rows, judged), None
        return run_layer(module, rows, config)

    def _reader(self, stream: str) -> RowsReader:
        assert self.previous is not None
        return self.way.rows(self.previous, stream).reader()

    def _is_image(self, index: int) -> Tensor | None:
        if self.graph in (names.VISION, names.PROJECTOR, names.HEAD):
            return None
        return torch.from_numpy(self.way.samples.all[index].is_image)
