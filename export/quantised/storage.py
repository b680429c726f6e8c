"""A graph's parameters as the recipe stores them: codes and scales, or plain, one block at a time.

Nothing larger than one matrix of a stack is in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError

from ..graph.quantise import QuantisedInput, input_scale_name, scale_name, whole_name
from ..graph.weights_file import Values
from ..recipe.recipe import PartRecipe, Recipe, WeightFormat
from ..sources import ONNX_TYPES, Source
from .codes import ONNX_TYPES as CODE_TYPES
from .codes import to_bytes
from .factor import Factor
from .matrix import Scales, quantise, rounded
from .places import Place, places
from .scales_file import GraphScales

_BLOCK_ELEMENTS = 1 << 24
_ROWS = 128
"""Rows come in multiples of this: all groups divide it."""


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """A small tensor that is already in memory; satisfies `weights_file.Values`."""

    name: str
    value: Tensor

    @property
    def dtype(self) -> ir.DataType:
        """ONNX element type."""
        if self.value.dtype == torch.float8_e4m3fn:
            return ir.DataType.FLOAT8E4M3FN
        return ONNX_TYPES[self.value.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.value.shape)

    def blocks(self) -> Iterable[memoryview]:
        """Yield all bytes at once."""
        yield self.value.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A quantised parameter; satisfies `weights_file.Values`."""

    source: Source
    scales: Scales
    form: WeightFormat
    factor: Factor | None

    @property
    def name(self) -> str:
        """That of the parameter."""
        return self.source.name

    @property
    def dtype(self) -> ir.DataType:
        """Type of the codes."""
        return CODE_TYPES[self.form.codes]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        return self.source.shape

    def blocks(self) -> Iterator[memoryview]:
        """Yield the codes of some rows after the others."""
        for values, scales in _scaled_blocks(self.source, self.factor, self.scales, self.form):
            yield to_bytes(quantise(values, scales, self.form), self.form.codes)


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """A plain parameter with a factor; satisfies `weights_file.Values`."""

    source: Source
    factor: Factor

    @property
    def name(self) -> str:
        """That of the parameter."""
        return self.source.name

    @property
    def dtype(self) -> ir.DataType:
        """That of the parameter."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        return self.source.shape

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes of one matrix after the other."""
        for part in weighted_parts(self.source, self.factor):
            stored = part.to(self.source.torch_dtype).contiguous()
            yield stored.view(torch.uint8).flatten().numpy().data


def weighted_parts(source: Source, factor: Factor | None) -> Iterator[Tensor]:
    """Yield a parameter's tensors in fp32, multiplied by their factor, in the order of the stack.

    Raises:
        CheckpointError: a value is not finite.
    """
    stacked = len(source.tensors) > 1
    for index, (name, part) in enumerate(zip(source.tensors, source.parts(), strict=True)):
        values = part.float()
        if factor is not None:
            values = (factor.of_matrix(index) if stacked else factor).applied(values)
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(f"{name}: values that are not finite; the checkpoint is damaged")
        yield values.reshape(source.shape[1:] if stacked else source.shape)


def quantised_places(module: nn.Module, recipe: Recipe) -> list[tuple[Place, PartRecipe]]:
    """List the parameters of a module that a recipe quantises, with what it says of them."""
    return [
        (place, recipe.parts[place.part]) for place in places(module) if place.part in recipe.parts
    ]


def quantised_inputs(
    module: nn.Module, recipe: Recipe, scales: GraphScales
) -> list[QuantisedInput]:
    """Describe the quantised parameters of a module to the graph."""
    found = []
    for place, part in quantised_places(module, recipe):
        acts = part.activations if place.port is not None else None
        step = stored_step(scales.weights[place.parameter], part.weights)
        found.append(
            QuantisedInput(
                name=place.parameter,
                reads_with=place.reads_with,
                codes=CODE_TYPES[part.weights.codes],
                group=part.weights.group,
                scale_shape=tuple(step.shape),
                is_two_level=part.weights.codes == "nvfp4",
                activations=acts.codes if acts else None,
                is_dynamic=bool(acts and acts.scale == "dynamic" and acts.codes != "nvfp4"),
            )
        )
    return found


def stored_values(
    sources: Sequence[Source], module: nn.Module, recipe: Recipe, scales: GraphScales
) -> list[Values]:
    """Give everything that a graph's weights file may hold, in a fixed order."""
    forms = {place.parameter: part for place, part in quantised_places(module, recipe)}
    values: list[Values] = []
    for source in sources:
        name, factor = source.name, scales.factors.get(source.name)
        if name not in forms:
            values.append(source if factor is None else Balanced(source=source, factor=factor))
            continue
        form, found = forms[name].weights, scales.weights[name]
        values.append(Codes(source=source, scales=found, form=form, factor=factor))
        values.append(Tensors(name=scale_name(name), value=stored_step(found, form)))
        if found.whole is not None:
            values.append(Tensors(name=whole_name(name), value=found.whole))
        if name in scales.inputs:
            values.append(Tensors(name=input_scale_name(name), value=scales.inputs[name]))
    return values


def stored_step(scales: Scales, form: WeightFormat) -> Tensor:
    """Drop the axis of the inputs from the scales of a plain matrix: (1, N) to (N,)."""
    step = scales.step
    return step[0] if form.group is None and step.dim() == 2 else step


def meaning(
    source: Source, scales: GraphScales, form: WeightFormat | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a parameter is before and after quantisation, fp32, some rows after the others.

    Both are balanced; without a format they are the same.
    """
    factor = scales.factors.get(source.name)
    if form is None:
        for part in weighted_parts(source, factor):
            yield part, part
        return
    for block, its in _scaled_blocks(source, factor, scales.weights[source.name], form):
        yield block, rounded(block, its, form)


def _scaled_blocks(
    source: Source, factor: Factor | None, scales: Scales, form: WeightFormat
) -> Iterator[tuple[Tensor, Scales]]:
    """Yield rows of a parameter's matrices with their scales: whole groups, a bounded number."""
    stacked = len(source.tensors) > 1
    for index, part in enumerate(weighted_parts(source, factor)):
        step = scales.step[index] if stacked else scales.step
        if part.dim() != 2:
            yield part, replace(scales, step=step)
            continue
        rows = max(1, _BLOCK_ELEMENTS // part.shape[1] // _ROWS) * _ROWS
        for start in range(0, len(part), rows):
            group = form.group
            some = step if group is None else step[start // group : (start + rows) // group]
            yield part[start : start + rows], replace(scales, step=some)
