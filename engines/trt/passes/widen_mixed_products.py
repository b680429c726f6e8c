"""Products of values rounded to one format with codes of another, computed in the base type.

TensorRT takes a dequantisation on both sides of a product as the wish to multiply codes with codes,
and does not compile FP8 with INT4. A minimum with the type's largest number between the two, which
changes nothing and which it does not fold, leaves the rounding and makes the codes weight-only.
"""

import onnx_ir as ir

from export.graph.edits import given

from ...lowering import Lowered
from .products import Product, number_type, products

_MOST = {
    ir.DataType.FLOAT16: 65504.0,
    ir.DataType.BFLOAT16: 2.0**127,
    ir.DataType.FLOAT: 2.0**127,
}


class WidenMixedProducts:
    """Keep the rounded side of a product apart from codes of another type."""

    name = "widen-mixed-products"

    def requires(self, model: ir.Model) -> str | None:
        """Rounded values have a type whose largest number is known."""
        wide = [one.node.name for one in _mixed(model) if number_type(_left(one)) not in _MOST]
        return f"products of values of another type: {wide[:3]}" if wide else None

    def run(self, lowered: Lowered) -> Lowered:
        """Put one minimum between each value and all such products that read it."""
        kept: dict[ir.Value, ir.Value] = {}
        for one in _mixed(lowered.model):
            value = _left(one)
            if value not in kept:
                kept[value] = _keep(one.node, value)
            one.node.replace_input_with(0, kept[value])
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No such product is left."""
        left = [one.node.name for one in _mixed(model)]
        return f"products of two formats: {left[:3]}" if left else None


def _mixed(model: ir.Model) -> list[Product]:
    return [
        one
        for one in products(model)
        if one.left_codes is not None and one.left_codes != one.right_codes
    ]


def _left(one: Product) -> ir.Value:
    return given(one.node.inputs[0])


def _keep(reader: ir.Node, value: ir.Value) -> ir.Value:
    """Insert the minimum before the first product that reads it."""
    dtype = number_type(value)
    tape = ir.tape.Tape()
    most = tape.op("Constant", [], {"value_float": _MOST[dtype]})
    kept = tape.op("Min", [value, tape.op("Cast", [most], {"to": dtype.value})])
    kept.type, kept.shape = ir.TensorType(dtype), value.shape
    given(reader.graph).insert_before(reader, tape.nodes)
    return kept
