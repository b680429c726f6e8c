"""Linear maps with integer codes as `MatMulNBits`, which reads the codes and never widens them.

Source: the operator's schema and its CUDA kernel in onnxruntime-gpu 1.31.1.
"""

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given

from ..cpu.block_linears import linear_weights
from ..cpu.blocks import BlockCodes, BlockScales, register
from ..cpu.bodies import MICROSOFT
from ..cpu.replaced_rounding import before_rounding
from ..cpu.stored_codes import StoredCodes, stored_codes
from ..lowering import Lowered


class CodedProducts:
    """Replace products with stored codes by `MatMulNBits`, codes laid out anew.

    A recipe's rounding of what meets the codes to int8 goes: the operator multiplies in the base
    type, so that rounding would cost time and precision and save nothing. Matrices whose inputs do
    not fill their blocks stay as they are, and mean the base type once the graph is loaded.
    """

    name = "coded-products"

    def requires(self, model: ir.Model) -> str | None:
        """Scales are of the type in which the graph computes."""
        other = [
            node.name
            for node, codes in _products(model)
            if codes.scales.dtype != before_rounding(given(node.inputs[0])).dtype
        ]
        return f"products whose scales are of another type: {other[:3]}" if other else None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each product; graphs without codes stay as they are."""
        model = lowered.model
        found = list(_products(model))
        weights = [one for node, codes in found for one in _replace(model.graph, node, codes)]
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.opset_imports[MICROSOFT] = 1
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No product is left that could be replaced."""
        left = [node.name for node, _ in _products(model)]
        return f"products with codes left: {left[:3]}" if left else None


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, StoredCodes]]:
    for node in model.graph:
        if node.domain != "" or node.op_type != "MatMul":
            continue
        codes = stored_codes(node.inputs[1])
        if codes is not None and len(codes.shape) == 2 and codes.shape[0] % codes.block == 0:
            yield node, codes


def _replace(
    graph: ir.Graph, node: ir.Node, stored: StoredCodes
) -> tuple[BlockCodes | BlockScales, ...]:
    weights = linear_weights(stored)
    inputs, outputs = stored.shape
    attributes = {"K": inputs, "N": outputs, "bits": stored.bits, "block_size": stored.block}
    x, old = before_rounding(given(node.inputs[0])), node.outputs[0]
    made = ir.node(
        "MatMulNBits",
        [x, *register(graph, weights)],
        attributes,
        domain=MICROSOFT,
        name=node.name,
    )
    result = made.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    return weights
