"""Put a recipe into a traced graph: standard QuantizeLinear and DequantizeLinear, no values yet.

Does not know: torch, how scales are found. A parameter `NAME` becomes codes of the same name, with
`NAME.scale` (and `NAME.scale_whole` in NVFP4); what meets it is rounded with `NAME.input_scale`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from .functions import OPSET

FP4_DOMAIN = "trt"
FP4_QUANTIZE = "TRT_FP4DynamicQuantize"
"""TensorRT's own op for activations in NVFP4; we add a body in standard ops."""

_FP4_BODY = f"""
<domain: "{FP4_DOMAIN}", opset_import: ["" : {OPSET}]>
{FP4_QUANTIZE} <axis: int = -1, block_size: int = 16, scale_type: int = 17> (x, whole) => (y, step)
{{
    wide = Cast <to: int = 1> (x)
    shape = Shape (wide)
    minus_one = Constant <value_ints: ints = [-1]> ()
    block_scalar = Constant <value_int: int = @block_size> ()
    block = Reshape (block_scalar, minus_one)
    outer = Shape <start: int = 0, end: int = -1> (wide)
    blocks_shape = Concat <axis: int = 0> (outer, minus_one, block)
    blocks = Reshape (wide, blocks_shape)
    sizes = Abs (blocks)
    largest = ReduceMax <keepdims: int = 1> (sizes, minus_one)
    six = Constant <value_float: float = 6.0> ()
    sixth = Div (largest, six)
    wanted = Div (sixth, whole)
    most = Constant <value_float: float = 448.0> ()
    bounded = Min (wanted, most)
    step_blocks = Cast <to: int = 17> (bounded)
    step_wide = Cast <to: int = 1> (step_blocks)
    factor = Mul (step_wide, whole)
    zero = Constant <value_float: float = 0.0> ()
    one = Constant <value_float: float = 1.0> ()
    is_zero = Equal (factor, zero)
    divisor = Where (is_zero, one, factor)
    quotient = Div (blocks, divisor)
    kept = Where (is_zero, zero, quotient)
    flat = Reshape (kept, shape)
    y = Cast <to: int = 23> (flat)
    step = Squeeze (step_blocks, minus_one)
}}
"""

_ZERO_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_LARGEST = {"int8": 127.0, "fp8": 448.0}
SMALLEST_SCALE = 2.0**-24
"""Of zeros, where scales are found as values come; the smallest number of fp16."""


@dataclass(frozen=True, kw_only=True)
class QuantisedInput:
    """One parameter in its new form; shapes and types only."""

    name: str
    reads_with: str
    """The parameter under which the scale of what meets this one is kept."""
    codes: ir.DataType
    group: int | None
    scale_shape: tuple[int, ...]
    is_two_level: bool
    """Scales are FP8 times one fp32 number."""
    activations: str | None
    """`int8`, `fp8` or `nvfp4`: how what meets the parameter is rounded."""
    is_dynamic: bool


def scale_name(parameter: str) -> str:
    """Name of the initialiser with a parameter's scales."""
    return f"{parameter}.scale"


def whole_name(parameter: str) -> str:
    """Name of the one number that all scales of a parameter are multiplied by, in NVFP4."""
    return f"{parameter}.scale_whole"


def input_scale_name(parameter: str) -> str:
    """Name of the scale of what meets a parameter."""
    return f"{parameter}.input_scale"


def quantise_graph(model: ir.Model, inputs: Iterable[QuantisedInput]) -> None:
    """Rewrite a traced model in place; parameters that read the same value share its rounding."""
    rounded: dict[tuple[ir.Value, str], ir.Value] = {}
    for one in inputs:
        parameter = model.graph.initializers[one.name]
        users = [use.node for use in parameter.uses()]
        for node in users:
            _round_input(model, node, one, parameter.dtype, rounded)
        _store_codes(model.graph, parameter, one, users)


def _store_codes(
    graph: ir.Graph, parameter: ir.Value, one: QuantisedInput, users: list[ir.Node]
) -> None:
    """Give a parameter its codes; readers get what they mean."""
    base, shape = parameter.dtype, parameter.shape
    if base is None or shape is None:
        raise RuntimeError(f"{one.name} has no type or shape")
    tape = ir.tape.Tape()
    scale_type = ir.DataType.FLOAT8E4M3FN if one.is_two_level else base
    scale = _initializer(graph, scale_name(one.name), scale_type, one.scale_shape)
    if one.is_two_level:
        whole = _initializer(graph, whole_name(one.name), ir.DataType.FLOAT, ())
        scale = tape.op("DequantizeLinear", [scale, whole])
        scale.type, scale.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(one.scale_shape)
    axis = len(shape) - 2
    attributes = {"axis": axis + 1}
    if len(one.scale_shape) > 1:
        whole_column = shape.numpy()[axis]
        attributes = {"axis": axis, "block_size": one.group or whole_column}
    meaning = tape.op("DequantizeLinear", [parameter, scale], attributes)
    meaning.shape = shape
    meaning.type = ir.TensorType(ir.DataType.FLOAT if one.is_two_level else base)
    if one.is_two_level and base != ir.DataType.FLOAT:
        meaning = tape.op("Cast", [meaning], {"to": base.value})
        meaning.type, meaning.shape = ir.TensorType(base), shape
    for node in users:
        for index, value in enumerate(node.inputs):
            if value is parameter:
                node.replace_input_with(index, meaning)
    parameter.type = ir.TensorType(one.codes)
    graph.insert_before(_first(graph, users), tape.nodes)


def _round_input(
    model: ir.Model,
    node: ir.Node,
    one: QuantisedInput,
    base: ir.DataType | None,
    rounded: dict[tuple[ir.Value, str], ir.Value],
) -> None:
    """Round what a node multiplies with a parameter, once for all that read it."""
    value = node.inputs[0]
    if one.activations is None or value is None or base is None:
        return
    key = (value, one.activations)
    if key not in rounded:
        tape = ir.tape.Tape()
        if one.activations == "nvfp4":
            result = _round_to_fp4(model, tape, value, one)
        else:
            result = _round_to_8_bits(model.graph, tape, value, one, base)
        if result.dtype != base:
            result = tape.op("Cast", [result], {"to": base.value})
        result.type, result.shape = ir.TensorType(base), value.shape
        readers = [use.node for use in value.uses() if use.node not in tape.nodes]
        model.graph.insert_before(_first(model.graph, readers), tape.nodes)
        rounded[key] = rounded[result, one.activations] = result  # one op may read two parameters
    node.replace_input_with(0, rounded[key])


def _round_to_8_bits(
    graph: ir.Graph, tape: ir.tape.Tape, value: ir.Value, one: QuantisedInput, base: ir.DataType
) -> ir.Value:
    codes = str(one.activations)
    zero_type = _ZERO_TYPES[codes]
    if one.is_dynamic:
        largest = tape.op("ReduceMax", [tape.op("Abs", [value])], {"keepdims": 0})
        most = tape.op("Constant", [], {"value_float": _LARGEST[codes]})
        tiny = tape.op("Constant", [], {"value_float": SMALLEST_SCALE})
        wide = tape.op("Cast", [largest], {"to": ir.DataType.FLOAT.value})
        scale = tape.op("Max", [tape.op("Div", [wide, most]), tiny])
        scale = tape.op("Cast", [scale], {"to": base.value})
        scale.type, scale.shape = ir.TensorType(base), ir.Shape(())
    else:
        scale = _initializer(graph, input_scale_name(one.reads_with), base, ())
    zero = tape.op("Constant", [], {"value": _zero(zero_type)})
    quantised = tape.op("QuantizeLinear", [value, scale, zero])
    quantised.type, quantised.shape = ir.TensorType(zero_type), value.shape
    result = tape.op("DequantizeLinear", [quantised, scale, zero])
    result.type = ir.TensorType(base)
    return result


def _round_to_fp4(
    model: ir.Model, tape: ir.tape.Tape, value: ir.Value, one: QuantisedInput
) -> ir.Value:
    whole = _initializer(model.graph, input_scale_name(one.reads_with), ir.DataType.FLOAT, ())
    attributes = {"axis": -1, "block_size": 16, "scale_type": ir.DataType.FLOAT8E4M3FN.value}
    codes, step = tape.op_multi_out(
        FP4_QUANTIZE, [value, whole], attributes, domain=FP4_DOMAIN, num_outputs=2
    )
    codes.type, codes.shape = ir.TensorType(ir.DataType.FLOAT4E2M1), value.shape
    step.type = ir.TensorType(ir.DataType.FLOAT8E4M3FN)
    factor = tape.op("DequantizeLinear", [step, whole])
    factor.type = ir.TensorType(ir.DataType.FLOAT)
    function = ir.serde.deserialize_function(onnx.parser.parse_function(_FP4_BODY.lstrip()))
    model.functions[function.identifier()] = function
    model.graph.opset_imports[FP4_DOMAIN] = 1
    rank = value.shape.rank() if value.shape is not None else 2
    result = tape.op("DequantizeLinear", [codes, factor], {"axis": rank - 1, "block_size": 16})
    result.type = ir.TensorType(ir.DataType.FLOAT)
    return result


def _zero(dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.serde.deserialize_tensor(onnx.helper.make_tensor("zero", dtype.value, [], [0]))


def _initializer(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.initializers.add(value)
    return value


def _first(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Node:
    return next(node for node in graph if node in nodes)
