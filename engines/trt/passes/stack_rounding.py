"""Values that meet stacks of matrices, given a stack's axis before they are rounded.

The same rows (N, C) meet every matrix of a stack (E, C, I). If the axis is added between the
rounding and the product, TensorRT does not compile the FP4 product for 128 rows and more; and the
rounding does not directly feed the product in other formats either.
"""

import onnx_ir as ir

from export.graph.edits import given

from ...lowering import Lowered
from .products import Product, products, products_reading


class StackRounding:
    """Round (1, N, C) instead of (N, C) where stacked codes follow."""

    name = "stack-rounding"

    def requires(self, model: ir.Model) -> str | None:
        """What was rounded to FP4 for a stack meets nothing but stacks."""
        mixed = [
            one.node.name
            for one in _meet_stacks(model)
            if one.left_codes == ir.DataType.FLOAT4E2M1 and one not in _flat(model)
        ]
        return f"rounded for stacks and other products: {mixed[:3]}" if mixed else None

    def run(self, lowered: Lowered) -> Lowered:
        """Move the axis; graphs without such products stay as they are."""
        for meaning in dict.fromkeys(given(one.left) for one in _flat(lowered.model)):
            _stack(meaning)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No rounded rows without a stack's axis meet a stack of codes."""
        left = [one.node.name for one in _flat(model)]
        return f"rounded without the axis of the stack: {left[:3]}" if left else None


def _flat(model: ir.Model) -> list[Product]:
    """List the products of rounded rows with stacks where the rows meet stacks only."""
    found = _meet_stacks(model)
    stacked = {one.node for one in found}
    return [one for one in found if stacked.issuperset(_readers(one))]


def _meet_stacks(model: ir.Model) -> list[Product]:
    """List the products of rounded rows (N, C) with a stack of codes."""
    return [
        one
        for one in products(model)
        if one.left is not None
        and one.right is not None
        and _rank(one.left.inputs[0]) == 2
        and _rank(one.right.inputs[0]) == 3
    ]


def _rank(value: ir.Value | None) -> int | None:
    shape = given(value).shape
    return None if shape is None else shape.rank()


def _readers(one: Product) -> list[ir.Node]:
    return list(products_reading(given(one.left).outputs[0]))


def _stack(meaning: ir.Node) -> None:
    """Add the axis before the rounding that a dequantisation belongs to."""
    rounder = given(given(meaning.inputs[0]).producer())
    value = given(rounder.inputs[0])
    tape = ir.tape.Tape()
    rows = tape.op("Unsqueeze", [value, tape.op("Constant", [], {"value_ints": [0]})])
    rows.type = value.type
    given(rounder.graph).insert_before(rounder, tape.nodes)
    rounder.replace_input_with(0, rows)
    shape = ir.Shape([1, *given(value.shape)])
    for stacked in (rows, rounder.outputs[0], meaning.outputs[0]):
        stacked.shape = shape
    for use in meaning.outputs[0].uses():
        if use.node.op_type == "Cast":
            use.node.outputs[0].shape = shape
    if "block_size" in meaning.attributes:  # NVFP4: blocks of the last axis
        meaning.attributes["axis"] = ir.AttrInt64("axis", 2)
