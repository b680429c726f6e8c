"""Small graphs over random integer codes, lowered and run in ONNX Runtime; and what codes mean.

Oracles are written out in numpy and share no code with the passes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from engines.lowering import Pass, lower
from export.graph.functions import OPSET, neutral_functions
from export.graph.weights_file import hold
from runtime.names import DOMAIN

Array = NDArray[Any]
TYPES: dict[int, Any] = {4: ml_dtypes.int4, 8: np.int8}


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A random matrix (in, out) of codes, or a stack of them."""

    codes: Array
    scales: Array
    """(..., in / group, out); of one for each output (..., 1, out), or (out,) without a stack."""
    group: int | None

    @property
    def meaning(self) -> Array:
        inputs = self.codes.shape[-2]
        scales = self.scales.astype(np.float64)
        if scales.ndim < self.codes.ndim:
            scales = scales[None]
        return self.codes.astype(np.float64) * np.repeat(scales, inputs // scales.shape[-2], -2)

    def node(self, name: str) -> str:
        """The text of the node that gives what the codes mean."""
        axis, inputs = self.codes.ndim - 2, self.codes.shape[-2]
        attributes = f"axis: int = {axis}, block_size: int = {self.group or inputs}"
        if self.scales.ndim == 1:
            attributes = "axis: int = 1"
        return f"{name} = DequantizeLinear <{attributes}> ({name}_codes, {name}_scale)"


def coded(
    seed: int, shape: tuple[int, ...], *, bits: int, group: int | None, base: type = np.float32
) -> Coded:
    random = np.random.default_rng(seed)
    most = 2 ** (bits - 1) - 1
    *stack, inputs, outputs = shape
    blocks = [] if group is None and not stack else [inputs // group if group else 1]
    return Coded(
        codes=random.integers(-most, most, shape, endpoint=True).astype(TYPES[bits]),
        scales=(random.uniform(0.2, 1.0, (*stack, *blocks, outputs)) / most).astype(base),
        group=group,
    )


def build(text: str, matrices: dict[str, Coded], **stored: Array) -> ir.Model:
    """A graph of ONNX text; `DEQUANTISED` in it is the nodes that give matrices their meaning.

    Args:
        text: the graph.
        matrices: by the name of what they mean.
        stored: other initialisers.
    """
    nodes = "\n".join(one.node(name) for name, one in matrices.items())
    header = f'<ir_version: 11, opset_import: ["": {OPSET}, "{DOMAIN}": 1]>\n'
    proto = onnx.parser.parse_model(header + text.replace("DEQUANTISED", nodes))
    for name, one in matrices.items():
        stored |= {f"{name}_codes": one.codes, f"{name}_scale": one.scales}
    tensors = [ir.tensor(value, name=name) for name, value in stored.items()]
    proto.graph.initializer.extend(ir.to_proto(tensor) for tensor in tensors)
    model = ir.serde.deserialize_model(proto)
    for function in neutral_functions().values():
        model.functions[function.identifier()] = function
    return model


def round_in_front(model: ir.Model, step: float) -> ir.Model:
    """Round to int8 what meets a matrix, as a recipe with static scales does."""
    for node in list(model.graph):
        if node.op_type in ("MatMul", "ExpertsUp", "ExpertsDown"):
            tape = ir.tape.Tape()
            scale = tape.op("Constant", [], {"value_float": step})
            zero = tape.op("Constant", [], {"value": ir.tensor(np.int8(0))})
            codes = tape.op("QuantizeLinear", [node.inputs[0], scale, zero])
            codes.type = ir.TensorType(ir.DataType.INT8)
            meaning = tape.op("DequantizeLinear", [codes, scale, zero])
            model.graph.insert_before(node, tape.nodes)
            node.replace_input_with(0, meaning)
    return model


def lowered(model: ir.Model, steps: Iterable[Pass]) -> ir.Model:
    """Lower a copy, with the new weights in the graph itself."""
    result = lower(model.clone(), list(steps))
    hold(result.model.graph, result.new_weights)
    return result.model


def without_rounding(model: ir.Model) -> ir.Model:
    """The same with bodies that round nothing, where ONNX Runtime has such a kernel."""
    for function in model.functions.values():
        for node in function:
            if "accuracy_level" in node.attributes:
                node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    return model


def rounded(x: Array, block: int) -> Array:
    """Rows in int8, each block with a scale of its own; rows are filled up with zeros."""
    count = -x.shape[-1] % block
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)]).astype(np.float64)
    blocks = padded.reshape(*x.shape[:-1], -1, block)
    steps = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    steps[steps == 0] = 1
    near: Array = np.rint(blocks / steps) * steps
    return near.reshape(padded.shape)[..., : x.shape[-1]]


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]
