"""Nodes that every rewrite of experts needs: constants and casts."""

from collections.abc import Sequence

import onnx_ir as ir


def number(tape: ir.tape.Tape, value: float) -> ir.Value:
    """Give a constant in fp32."""
    return tape.op("Constant", [], {"value_float": value})


def ints(tape: ir.tape.Tape, values: Sequence[int]) -> ir.Value:
    """Give a constant list of int64."""
    return tape.op("Constant", [], {"value_ints": list(values)})


def cast(tape: ir.tape.Tape, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Turn a value to a type, which is noted."""
    made = tape.op("Cast", [value], {"to": dtype.value})
    made.type = ir.TensorType(dtype)
    return made
