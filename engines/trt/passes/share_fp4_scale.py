"""One constant for all factors of NVFP4, what they differ by behind the products.

NVFP4 multiplies all scales of a tensor by one fp32 number. TensorRT takes that of activations only
as a constant, and uses its FP4 product only if that of the weights is one, too; as inputs of the
network they are neither. So values are divided by their number before they are rounded, and the
products multiplied by both numbers: x @ w = (x / a) @ (w / b) * (a * b).
"""

import onnx_ir as ir

from export.graph.edits import given
from export.graph.quantise import FP4_QUANTIZE

from ...lowering import Lowered
from .products import insert_behind, products, products_reading

_SHARED = 2.0**-11
"""The constant; codes times scales reach 6 * 448, so that products stay near 1."""
_FLOAT = ir.TensorType(ir.DataType.FLOAT)


class ShareFP4Scale:
    """Round activations, and read weights that meet them, under one constant factor."""

    name = "share-fp4-scale"

    def requires(self, model: ir.Model) -> str | None:
        """Rounded values meet matrix products and nothing else."""
        for node in _roundings(model):
            try:
                list(products_reading(_meaning(node).outputs[0]))
            except RuntimeError as error:
                return str(error)
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Change every rounding and what meets it; graphs without FP4 stay as they are."""
        model = lowered.model
        weights = {
            one.node: given(one.right)
            for one in products(model)
            if one.left_codes == one.right_codes == ir.DataType.FLOAT4E2M1
        }
        for product, dequantisation in weights.items():
            _multiply(product, _share(dequantisation))
        for node in _roundings(model):
            _round_shared(node)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Every factor of activations is a constant."""
        left = [node.name for node in _roundings(model) if not _is_constant(node.inputs[1])]
        return f"FP4 roundings with a factor that is not constant: {left[:3]}" if left else None


def _roundings(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == FP4_QUANTIZE]


def _meaning(rounding: ir.Node) -> ir.Node:
    """Return the dequantisation of what a rounding made."""
    (use,) = rounding.outputs[0].uses()
    return use.node


def _is_constant(value: ir.Value | None) -> bool:
    producer = given(value).producer()
    return producer is not None and producer.op_type == "Constant"


def _shared(tape: ir.tape.Tape) -> ir.Value:
    value = tape.op("Constant", [], {"value_float": _SHARED})
    value.type, value.shape = _FLOAT, ir.Shape([])
    return value


def _share(dequantisation: ir.Node) -> ir.Value:
    """Put the constant in the place of a tensor's own factor, which is returned."""
    scale = given(given(dequantisation.inputs[1]).producer())
    whole = given(scale.inputs[1])
    if not _is_constant(whole):
        tape = ir.tape.Tape()
        scale.replace_input_with(1, _shared(tape))
        given(scale.graph).insert_before(scale, tape.nodes)
    return whole


def _round_shared(rounding: ir.Node) -> None:
    """Divide values by their factor before they are rounded, and multiply it back behind."""
    value, whole = given(rounding.inputs[0]), given(rounding.inputs[1])
    meaning = _meaning(rounding)
    tape = ir.tape.Tape()
    shared = _shared(tape)
    wide = tape.op("Cast", [value], {"to": ir.DataType.FLOAT.value})
    divided = tape.op("Mul", [wide, tape.op("Div", [shared, whole])])
    divided.type, divided.shape = _FLOAT, value.shape
    given(rounding.graph).insert_before(rounding, tape.nodes)
    rounding.replace_input_with(0, divided)
    rounding.replace_input_with(1, shared)
    given(given(meaning.inputs[1]).producer()).replace_input_with(1, shared)
    for product in dict.fromkeys(products_reading(meaning.outputs[0])):
        _multiply(product, whole)


def _multiply(product: ir.Node, whole: ir.Value) -> None:
    """Multiply a product by a factor's share, in fp32."""
    result = product.outputs[0]
    tape = ir.tape.Tape()
    wide = tape.op("Cast", [result], {"to": ir.DataType.FLOAT.value})
    factor = tape.op("Div", [whole, _shared(tape)])
    narrow = tape.op("CastLike", [tape.op("Mul", [wide, factor]), result])
    insert_behind(product, tape, narrow)
