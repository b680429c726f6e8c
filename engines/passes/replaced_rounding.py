"""A recipe's int8 rounding of activations, which operators that round in blocks take the place of.

Both at once would round twice. A block of a row has a scale of its own, made from what is in it, so
that its steps are finer than those of one static scale unless that one cuts values off. Factors
that balance weights and activations are in the weights and in what comes before; they stay.
"""

from collections.abc import Callable

import onnx_ir as ir

from export.graph.edits import given

from .graph_edits import producer_of

Look = Callable[[ir.Value], ir.Value]
"""Gives what a value was before a rounding that need not be done."""


def as_it_is(value: ir.Value) -> ir.Value:
    """Return the value itself: every rounding has to be done."""
    return value


def before_rounding(value: ir.Value) -> ir.Value:
    """Return what was rounded to int8 to give a value; the value itself if nothing was."""
    back = producer_of(value, "DequantizeLinear")
    there = None if back is None else producer_of(back.inputs[0], "QuantizeLinear")
    is_int8 = there is not None and there.outputs[0].dtype == ir.DataType.INT8
    return given(there.inputs[0]) if there is not None and is_int8 else value
