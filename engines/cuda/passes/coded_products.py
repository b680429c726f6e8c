"""Linear maps with integer codes as `MatMulNBits`, which reads the codes and never widens them.

Source: the operator's schema and its CUDA kernel in onnxruntime-gpu 1.31.1.
"""

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes import common

from runtime.names import MICROSOFT

from ...lowering import Lowered
from ...passes.coded_linears import CodedLinear, coded_linears
from ...passes.replaced_rounding import before_rounding


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
            one.node.name
            for one in _products(model)
            if one.matrix.scales.dtype != before_rounding(one.x).dtype
        ]
        return f"products whose scales are of another type: {other[:3]}" if other else None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each product; graphs without codes stay as they are."""
        model = lowered.model
        found = _products(model)
        weights = [
            weight
            for one in found
            for weight in one.replace("MatMulNBits", MICROSOFT, before_rounding(one.x))
        ]
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.opset_imports[MICROSOFT] = 1
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No product is left that could be replaced."""
        left = [one.node.name for one in _products(model)]
        return f"products with codes left: {left[:3]}" if left else None


def _products(model: ir.Model) -> list[CodedLinear]:
    found = coded_linears(model)
    return [one for one in found if one.matrix.shape[0] % one.matrix.block == 0]
