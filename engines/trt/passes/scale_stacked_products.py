"""Scales of stacked 8-bit matrices behind the products instead of before them.

Experts have one scale for each expert and output. ONNX can say that of a stack (E, in, out) only
as blocks along the inputs, and TensorRT multiplies codes with codes under blocks only if all scales
are constants; with others it stops, or crashes. But a scale of an output can meet the product as
well: x @ (codes * scale) = (x @ codes) * scale. The codes keep one constant scale, a power of two.
"""

import onnx_ir as ir

from export.graph.edits import given

from ...lowering import Lowered
from ...passes.graph_edits import static_size
from .products import Product, insert_behind, products

_UNIT = 2.0**-8
"""The constant scale: with it products of codes stay near those of the weights, in fp16 too."""
_8_BITS = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)


class ScaleStackedProducts:
    """Multiply products of rounded values with stacked 8-bit codes by the scales of the codes."""

    name = "scale-stacked-products"

    def requires(self, model: ir.Model) -> str | None:
        """One scale for all inputs of an output."""
        grouped = [
            one.node.name for one in _stacked(model) if static_size(given(one.right_scale), 1) != 1
        ]
        return f"rounded values meet 8-bit codes in groups: {grouped[:3]}" if grouped else None

    def run(self, lowered: Lowered) -> Lowered:
        """Move each scale; graphs without such products stay as they are."""
        for one in _stacked(lowered.model):
            _move(one)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No such product is left."""
        left = [one.node.name for one in _stacked(model)]
        return f"products under scales of blocks: {left[:3]}" if left else None


def _stacked(model: ir.Model) -> list[Product]:
    return [
        one
        for one in products(model)
        if one.right is not None
        and one.right_codes in _8_BITS
        and one.left_codes == one.right_codes
        and "block_size" in one.right.attributes
    ]


def _move(one: Product) -> None:
    old, scale = given(one.right), given(one.right_scale)
    tape = ir.tape.Tape()
    unit = tape.op("CastLike", [tape.op("Constant", [], {"value_float": _UNIT}), scale])
    codes = tape.op("DequantizeLinear", [old.inputs[0], unit])
    codes.type, codes.shape = old.outputs[0].type, old.outputs[0].shape
    given(one.node.graph).insert_before(one.node, tape.nodes)
    one.node.replace_input_with(1, codes)
    behind = ir.tape.Tape()
    per_unit = behind.op("CastLike", [behind.op("Constant", [], {"value_float": 1 / _UNIT}), scale])
    factor = behind.op("Mul", [scale, per_unit])
    insert_behind(one.node, behind, behind.op("Mul", [one.node.outputs[0], factor]))
