"""Neutral graphs of the released sizes in any recipe, whose weights take no disk: nearly all are 0.

For benchmarks of what does not depend on values. But TensorRT refuses scales that are not positive
where it sees them, and keeps equal weights once: scales are 1 and more, and tensors differ.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from torch import nn

    from export.graph.weights_file import Values
    from export.graphs import GraphPlan
    from export.quantised.scales_file import GraphScales
    from export.recipe.recipe import Recipe
    from runtime.config import KimiVLConfig

Writer = Callable[[Path, "Sequence[Values]"], None]
"""Writes the values of a graph's parameters to a file, laid out as the export does."""


class HollowGraphs:
    """Writes them; what is the same in several recipes is traced once."""

    def __init__(self, model_folder: Path, write_weights: Writer | None = None) -> None:
        """Write the model's config and small files.

        Args:
            model_folder: gets them.
            write_weights: fills a weights file; with nearly nothing, if left out.
        """
        from export.checkpoint.reader import Checkpoint
        from export.synthetic.folder import write_synthetic

        self._checkpoint = Checkpoint.open(write_synthetic(model_folder, shape="full"))
        self._traced: dict[tuple[str, str], ir.Model] = {}
        self._write_weights = write_weights or _write_hollow

    @property
    def config(self) -> "KimiVLConfig":
        """Sizes of the model."""
        return self._checkpoint.config

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return self._checkpoint.config.decoder.num_layers

    def write(
        self,
        recipe: "Recipe",
        layers: Sequence[int],
        folder: Path,
        only: Collection[str] | None = None,
    ) -> tuple[str, ...]:
        """Write the graphs of a recipe, as the export does; give their names.

        Args:
            recipe: formats of the parts.
            layers: decoder layers.
            folder: gets them.
            only: names of the graphs to write; None: all.
        """
        from export.graphs import DTYPES, plan_graphs

        (folder / "weights").mkdir(parents=True)
        config, dtype = self._checkpoint.config, DTYPES[recipe.base]
        quantised: dict[str, ir.Model] = {}
        every = plan_graphs(config, dtype, layers, taps=False)
        plans = [plan for plan in every if only is None or plan.name in only]
        for plan in plans:
            self._write_graph(plan, recipe, folder, quantised)
        return tuple(plan.name for plan in plans)

    def _write_graph(
        self, plan: "GraphPlan", recipe: "Recipe", folder: Path, quantised: dict[str, ir.Model]
    ) -> None:
        from engines.job import write_graph
        from export.graph.quantise import quantise_graph
        from export.graph.quantise_cache import quantise_cache
        from export.graph.weights_file import bind_weights
        from export.quantised.storage import quantised_inputs, stored_values
        from export.sources import parameter_sources

        module = plan.build()
        scales = _scales(module, recipe)
        if plan.kind not in quantised:
            quantised[plan.kind] = self._trace(plan, module, recipe.base)
            quantise_graph(quantised[plan.kind], quantised_inputs(module, recipe, scales))
            if recipe.cache is not None and plan.is_layer:
                rank = self._checkpoint.config.decoder.latent_rank
                quantise_cache(quantised[plan.kind], rank=rank, group=recipe.cache.group)
        sources = parameter_sources(module, plan.prefix, self._checkpoint)
        values = stored_values(sources, module, recipe, scales)
        location = f"weights/{plan.name}.bin"
        self._write_weights(folder / location, values)
        model = quantised[plan.kind]
        model.graph.name = plan.name
        bind_weights(model.graph, values, location)
        write_graph(folder / f"{plan.name}.onnx", model)

    def _trace(self, plan: "GraphPlan", module: "nn.Module", base: str) -> ir.Model:
        from export.trace import trace

        key = (plan.kind, base)
        if key not in self._traced:
            self._traced[key] = trace(module, plan.spec)
        return self._traced[key].clone()


def _scales(module: "nn.Module", recipe: "Recipe") -> "GraphScales":
    """Make scales between 1 and 2, others for each matrix of a layer."""
    import torch

    from export.graphs import DTYPES
    from export.quantised.matrix import Scales
    from export.quantised.scales_file import GraphScales
    from export.quantised.storage import quantised_places

    base, shapes = DTYPES[recipe.base], dict(module.named_parameters())
    weights: dict[str, Scales] = {}
    inputs = {}
    for place, part in quantised_places(module, recipe):
        *stack, rows, columns = shapes[place.parameter].shape
        form, rounding = part.weights, part.activations
        is_fp4 = form.codes == "nvfp4"
        sizes = (*stack, rows // (form.group or rows), columns)
        steps = torch.full(sizes, 1 + len(weights) % 128 / 128, dtype=base)
        weights[place.parameter] = Scales(
            step=steps.to(torch.float8_e4m3fn) if is_fp4 else steps,
            whole=torch.ones(()) if is_fp4 else None,
        )
        if rounding is not None and place.port is not None and place.reads_with == place.parameter:
            is_wide = rounding.codes == "nvfp4"
            inputs[place.parameter] = torch.ones((), dtype=torch.float32 if is_wide else base)
    return GraphScales(weights=weights, inputs=inputs)


def _write_hollow(path: Path, values: "Sequence[Values]") -> None:
    """Write scales, and of everything else two bytes; zeros between take no disk."""
    from export.graph.weights_file import lay_out
    from export.quantised.storage import Tensors

    places = lay_out(values)
    with path.open("wb") as file:
        file.truncate(max(place.offset + place.length for place in places.values()))
        for number, one in enumerate(values):
            file.seek(places[one.name].offset)
            is_scale = isinstance(one, Tensors)
            file.writelines(one.blocks() if is_scale else [bytes(divmod(number, 100))])
