"""Scores of chosen experts for operators that weigh by a softmax of what they choose by.

`MoE`, and `QMoE` on a GPU, take the K largest of `router_probs` and weigh the experts by their
softmax. The logarithms of our scores at the chosen experts, and a large negative number elsewhere,
make them choose the same ones and weigh them by score / sum; the sum is multiplied back afterwards.
Where a graph computes in 16 bits, so do the operators with the logarithms: they are made relative
to the mean score first, which leaves little to round.
"""

import onnx_ir as ir

from export.graph.edits import given
from export.graph.widen import NARROW

from .graph_edits import ints, static_size

_NEVER = -6e4
"""Where no expert was chosen; finite in fp16, and its exponential is zero."""
_TINY = 1e-30
"""What stands for a score of zero, and for the mean of such ones."""


def router_logits(
    tape: ir.tape.Tape,
    chosen: ir.Value,
    scores: ir.Value,
    *,
    num_experts: int,
    dtype: ir.DataType | None,
) -> ir.Value:
    """Give logarithms of the scores at the chosen experts, much less elsewhere: (N, E).

    Args:
        tape: gets the nodes.
        chosen: (N, K) int64.
        scores: (N, K) fp32, none negative.
        num_experts: E.
        dtype: in which the operator computes.
    """
    is_narrow = dtype in NARROW
    relative = tape.op("Div", [scores, _mean(tape, chosen, scores)]) if is_narrow else scores
    logs = tape.op("Log", [tape.op("Max", [relative, _number(tape, _TINY)])])
    rows = tape.op("Shape", [chosen], {"start": 0, "end": 1})
    shape = tape.op("Concat", [rows, ints(tape, num_experts)], {"axis": 0})
    base = tape.op("Expand", [_number(tape, _NEVER), shape])
    logits = tape.op("ScatterElements", [base, chosen, logs], {"axis": 1})
    return _cast(tape, logits, given(dtype)) if is_narrow else logits


def scaled_by_sum(
    tape: ir.tape.Tape, mixed: ir.Value, scores: ir.Value, *, dtype: ir.DataType | None
) -> ir.Value:
    """Multiply the sum of a token's scores back to its mixture (N, C), in fp32."""
    total = tape.op("ReduceSum", [scores, ints(tape, -1)], {"keepdims": 1})
    if dtype not in NARROW:
        return tape.op("Mul", [mixed, total])
    wide = tape.op("Mul", [_cast(tape, mixed, ir.DataType.FLOAT), total])
    return _cast(tape, wide, given(dtype))


def _mean(tape: ir.tape.Tape, chosen: ir.Value, scores: ir.Value) -> ir.Value:
    """Average the scores of each token, (N, 1); of none it is a number that divides nothing."""
    total = tape.op("ReduceSum", [scores, ints(tape, -1)], {"keepdims": 1})
    share = _number(tape, 1.0 / static_size(chosen, 1))
    return tape.op("Max", [tape.op("Mul", [total, share]), _number(tape, _TINY)])


def _cast(tape: ir.tape.Tape, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    cast = tape.op("Cast", [value], {"to": dtype.value})
    cast.type = ir.TensorType(dtype)
    return cast


def _number(tape: ir.tape.Tape, value: float) -> ir.Value:
    return tape.op("Constant", [], {"value_float": value})
