"""Trace a module into a neutral graph: standard ops, our own ops with bodies, named weights.

The module's values are never read: parameters are reserved memory, and each becomes an initialiser
that only has a name, a type and a shape until `bind_weights` points it at a file.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from runtime.names import DOMAIN

from .graph.functions import OPSET, neutral_functions
from .modules.ops import OPSET as DOMAIN_VERSION

Axes = dict[int, str]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The contract of one graph: what goes in and out, apart from its layers."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: tuple[Tensor, ...]
    """One input each; sizes on dynamic axes are examples, the others are the contract."""
    dynamic: tuple[Axes, ...]
    """For each input, its dynamic axes by shape letter; `2*x` means an even size."""
    output_axes: dict[str, Axes] = field(default_factory=dict)
    """Letters for axes of outputs that are computed from those of the inputs."""


def trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """Turn a module into an ONNX model without weights.

    Returns:
        A model with bodies for our ops, no debug metadata, and empty initialisers.
    """
    quiet = contextlib.redirect_stdout(io.StringIO())
    # torch lists the operators of torchvision that it goes without.
    with warnings.catch_warnings(), quiet, _errors_alone("torch.onnx"):
        warnings.simplefilter("ignore")  # torch's notes about its own deprecated names
        program = torch.onnx.export(
            module.eval(),
            spec.examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=_dynamic_shapes(spec),
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        model = program.model
        _forget_values(model, module)
        _optimize(model)
    model.graph.name = spec.name
    _attach_bodies(model)
    _clean(model)
    _name_axes(model, spec)
    _check_parameters(model, module)
    return model


def _dynamic_shapes(spec: GraphSpec) -> tuple[dict[int, object], ...]:
    names = {name.removeprefix("2*") for axes in spec.dynamic for name in axes.values()}
    sizes = {name: torch.export.Dim(name, min=1, max=1 << 20) for name in sorted(names)}

    def size(name: str) -> object:
        return 2 * sizes[name.removeprefix("2*")] if name.startswith("2*") else sizes[name]

    return tuple({axis: size(name) for axis, name in axes.items()} for axes in spec.dynamic)


def _forget_values(model: ir.Model, module: nn.Module) -> None:
    """Take the parameters' memory out of the model, so that no pass can fold what it holds."""
    for name, _ in module.named_parameters():
        model.graph.initializers[name].const_value = None


def _optimize(model: ir.Model) -> None:
    """Fold constants and shapes; initialisers without values are left alone, without a warning."""
    with _errors_alone("onnx_ir"):
        onnxscript.optimizer.optimize_ir(model)


@contextlib.contextmanager
def _errors_alone(name: str) -> Iterator[None]:
    """Keep a library's warnings out of the log."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _attach_bodies(model: ir.Model) -> None:
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for name, function in neutral_functions().items():
        if name in used:
            model.functions[function.identifier()] = function
    if used:
        model.graph.opset_imports[DOMAIN] = DOMAIN_VERSION


def _clean(model: ir.Model) -> None:
    """Drop dead nodes and all notes about where the code came from."""
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "kimivl", None
    model.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def _name_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Write our shape letters over the tracer's symbols."""
    for value, axes in zip(model.graph.inputs, spec.dynamic, strict=True):
        if value.shape is None:
            raise RuntimeError(f"{spec.name}: input {value.name} lost its shape")
        sizes = [axes.get(i, size) for i, size in enumerate(value.shape)]
        value.shape = ir.Shape(sizes)
    for value in model.graph.outputs:
        axes = spec.output_axes.get(str(value.name), {})
        if value.shape is not None and axes:
            value.shape = ir.Shape([axes.get(i, size) for i, size in enumerate(value.shape)])


def _check_parameters(model: ir.Model, module: nn.Module) -> None:
    traced = set(model.graph.initializers)
    wanted = {name for name, _ in module.named_parameters()}
    constants = traced - wanted
    if wanted - traced:
        raise RuntimeError(f"parameters lost in the trace: {sorted(wanted - traced)[:5]}")
    for name in constants:
        if model.graph.initializers[name].const_value is None:
            raise RuntimeError(f"initialiser without a value: {name}")
