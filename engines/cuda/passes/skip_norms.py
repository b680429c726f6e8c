"""The sum of residual and what a part of a layer gave, and the norm behind it, as one operator.

For the joined graph only: between two layers there is no such pair before they are joined, and the
graphs of layers, which are compared with torch, stay what the joined one is compared with.

The CUDA kernel of onnxruntime-gpu 1.31.1 rounds the sum to the base type, as `Add` does, normalises
the rounded sum in fp32 and rounds once, behind the weights. Source: `skip_layer_norm_impl.cu`,
`layer_norm.cuh`; seen in the library's code for SM90.
"""

from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import MICROSOFT, SKIP_NORM

from ...lowering import Lowered

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FP32 = ir.DataType.FLOAT.value
_DEFAULT_EPSILON = 1e-5
"""Of `RMSNormalization`; the other operator has another one."""


class SkipNorms:
    """Replace each `Add` that one `RMSNormalization` reads by what gives both results."""

    name = "skip-norms"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; sums that are broadcast, or not normalised, stay as they are."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each pair where the sum is made."""
        model = lowered.model
        found = list(_pairs(model))
        for pair in found:
            _replace(model.graph, pair)
        if found:
            model.graph.opset_imports[MICROSOFT] = 1
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No pair is left."""
        left = [pair.norm.name for pair in _pairs(model)]
        return f"sums before norms left: {left[:3]}" if left else None


class _Pair(NamedTuple):
    add: ir.Node
    norm: ir.Node


def _pairs(model: ir.Model) -> Iterator[_Pair]:
    for add in model.graph:
        if add.domain != "" or add.op_type != "Add" or not _is_of_rows(add):
            continue
        norms = [node for node, place in add.outputs[0].uses() if place == 0 and _is_norm(node)]
        if len(norms) == 1:
            yield _Pair(add, norms[0])


def _is_of_rows(add: ir.Node) -> bool:
    """Whether both sides are rows (B, S, C) of the same sizes and a type that the kernel has."""
    left, right = (given(value) for value in add.inputs)
    if left.shape is None or len(left.shape) != 3 or left.dtype not in _TYPES:
        return False
    is_known = all(isinstance(size, int) or size.value is not None for size in left.shape)
    return is_known and left.shape == right.shape and left.dtype == right.dtype


def _is_norm(node: ir.Node) -> bool:
    """Whether it is one over the last axis, in fp32, with weights of the type of what it reads."""
    if node.domain != "" or node.op_type != "RMSNormalization":
        return False
    rows, weight = (given(value) for value in node.inputs)
    return (
        node.attributes.get_int("axis", -1) in (-1, 2)
        and node.attributes.get_int("stash_type", _FP32) == _FP32
        and weight.shape is not None
        and len(weight.shape) == 1
        and rows.dtype == weight.dtype
        and weight.is_initializer()
    )


def _replace(graph: ir.Graph, pair: _Pair) -> None:
    add, norm = pair
    epsilon = norm.attributes.get_float("epsilon", _DEFAULT_EPSILON)
    made = ir.node(
        SKIP_NORM,
        [*add.inputs, norm.inputs[1]],
        {"epsilon": epsilon},
        domain=MICROSOFT,
        name=norm.name,
        outputs=[ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()],
    )
    normalised, _, _, total = made.outputs
    graph.insert_before(add, made)
    for new, old in ((normalised, norm.outputs[0]), (total, add.outputs[0])):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove([norm, add], safe=True)
