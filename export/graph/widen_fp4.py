"""FP4 on a CPU that has no kernel for it: the same values as int8, the same rounding in arithmetic.

Every E2M1 number times two is a whole number from -12 to 12, so codes become int8 and their scales
half as large, which is exact. Rounding to E2M1 is written with comparisons.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from .edits import given
from .functions import OPSET
from .quantise import FP4_DOMAIN, FP4_QUANTIZE, whole_name
from .weights_file import Values

_FP4 = ir.DataType.FLOAT4E2M1
_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)
"""Twice the value of each code."""

# Spacing is 0.5 below 2, 1 below 4, 2 above; Round is to even, as E2M1's own ties are.
_ROUND_BODY = f"""
<domain: "{FP4_DOMAIN}", opset_import: ["" : {OPSET}]>
RoundToFP4 <block_size: int = 16> (x, whole) => (y)
{{
    shape = Shape (x)
    minus_one = Constant <value_ints: ints = [-1]> ()
    block_scalar = Constant <value_int: int = @block_size> ()
    block = Reshape (block_scalar, minus_one)
    outer = Shape <start: int = 0, end: int = -1> (x)
    blocks_shape = Concat <axis: int = 0> (outer, minus_one, block)
    blocks = Reshape (x, blocks_shape)
    sizes = Abs (blocks)
    largest = ReduceMax <keepdims: int = 1> (sizes, minus_one)
    six = Constant <value_float: float = 6.0> ()
    sixth = Div (largest, six)
    wanted = Div (sixth, whole)
    most = Constant <value_float: float = 448.0> ()
    bounded = Min (wanted, most)
    step_code = Cast <to: int = 17> (bounded)
    step = Cast <to: int = 1> (step_code)
    factor = Mul (step, whole)
    zero = Constant <value_float: float = 0.0> ()
    one = Constant <value_float: float = 1.0> ()
    two = Constant <value_float: float = 2.0> ()
    four = Constant <value_float: float = 4.0> ()
    half = Constant <value_float: float = 0.5> ()
    is_zero = Equal (factor, zero)
    divisor = Where (is_zero, one, factor)
    quotient = Div (sizes, divisor)
    kept = Where (is_zero, zero, quotient)
    inside = Min (kept, six)
    is_low = Less (inside, two)
    is_middle = Less (inside, four)
    coarse = Where (is_middle, one, two)
    spacing = Where (is_low, half, coarse)
    steps = Div (inside, spacing)
    whole_steps = Round (steps)
    rounded = Mul (whole_steps, spacing)
    magnitude = Mul (rounded, factor)
    sign = Sign (blocks)
    signed = Mul (magnitude, sign)
    y = Reshape (signed, shape)
}}
"""
_ROUND = "RoundToFP4"


def misplaced_roundings(model: ir.Model) -> list[ir.Node]:
    """List roundings that are not followed by the dequantisation that the export puts there."""
    return [node for node in _roundings(model) if _meaning(node) is None]


def has_fp4(model: ir.Model) -> bool:
    """Tell whether a graph has an FP4 value."""
    values = [*model.graph.initializers.values()]
    values += [output for node in model.graph.all_nodes() for output in node.outputs]
    return any(value.dtype == _FP4 for value in values)


def widen_fp4(model: ir.Model) -> list[Values]:
    """Replace FP4 weights by int8 ones, and FP4 rounding of activations by arithmetic, in place.

    Returns:
        The new weights, by the names of their initialisers.
    """
    for node in _roundings(model):
        _round_in_fp32(model, node)
    weights: list[Values] = []
    for value in list(model.graph.initializers.values()):
        if value.dtype == _FP4:
            weights += _widen(model.graph, value)
    return weights


@dataclass(frozen=True, kw_only=True)
class DoubledCodes:
    """FP4 codes as int8, doubled; satisfies `weights_file.Values`."""

    name: str
    codes: ir.TensorProtocol

    @property
    def dtype(self) -> ir.DataType:
        """Always int8."""
        return ir.DataType.INT8

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the codes."""
        return tuple(self.codes.shape.numpy())

    def blocks(self) -> Iterator[memoryview]:
        """Yield all bytes, packed codes turned to one byte each."""
        packed = np.frombuffer(self.codes.tobytes(), dtype=np.uint8)
        pairs = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
        yield _DOUBLED[pairs[: self.codes.size]].data


@dataclass(frozen=True, kw_only=True)
class HalfOf:
    """One fp32 number, halved; satisfies `weights_file.Values`."""

    name: str
    number: ir.TensorProtocol

    @property
    def dtype(self) -> ir.DataType:
        """Always fp32."""
        return ir.DataType.FLOAT

    @property
    def shape(self) -> tuple[int, ...]:
        """No axes."""
        return ()

    def blocks(self) -> Iterator[bytes]:
        """Yield its four bytes."""
        yield (self.number.numpy() * np.float32(0.5)).astype(np.float32).tobytes()


def _roundings(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == FP4_QUANTIZE]


def _meaning(node: ir.Node) -> ir.Value | None:
    """What a rounding's codes mean, behind their dequantisation."""
    users = [use.node for use in node.outputs[0].uses()]
    is_there = len(users) == 1 and users[0].op_type == "DequantizeLinear"
    return users[0].outputs[0] if is_there else None


def _round_in_fp32(model: ir.Model, node: ir.Node) -> None:
    meaning = _meaning(node)
    if meaning is None:
        raise RuntimeError(f"{node.name} was not checked")
    tape = ir.tape.Tape()
    rounded = tape.op(_ROUND, list(node.inputs), domain=FP4_DOMAIN)
    rounded.type, rounded.shape = ir.TensorType(ir.DataType.FLOAT), meaning.shape
    model.graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(meaning, rounded)
    step = given(given(meaning.producer()).inputs[1]).producer()
    model.graph.remove([given(meaning.producer()), given(step), node], safe=True)
    function = ir.serde.deserialize_function(onnx.parser.parse_function(_ROUND_BODY.lstrip()))
    model.functions[function.identifier()] = function
    model.functions.pop((FP4_DOMAIN, FP4_QUANTIZE, ""), None)


def _widen(graph: ir.Graph, codes: ir.Value) -> list[Values]:
    """Swap an FP4 initialiser for doubled int8 codes and halve the number its scales share."""
    name = str(codes.name)
    whole = graph.initializers[whole_name(name)]
    if codes.const_value is None or whole.const_value is None:
        raise RuntimeError(f"{name} has no weights")
    made: list[Values] = [
        DoubledCodes(name=f"{name}.doubled", codes=codes.const_value),
        HalfOf(name=f"{name}.half_whole", number=whole.const_value),
    ]
    for old, new in zip((codes, whole), made, strict=True):
        value = ir.Value(name=new.name, type=ir.TensorType(new.dtype), shape=ir.Shape(new.shape))
        graph.initializers.add(value)
        ir.convenience.replace_all_uses_with(old, value)
        graph.initializers.pop(str(old.name))
    return made
