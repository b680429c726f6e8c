"""Scores of chosen experts for operators that weigh by a softmax of what they choose by.

`MoE`, and `QMoE` on a GPU, take the K largest of `router_probs` and weigh the experts by their
softmax. The logarithms of our scores at the chosen experts, and a large negative number elsewhere,
make them choose the same ones and weigh them by score / sum; the sum is multiplied back afterwards.
Where a graph computes in 16 bits, so do the operators with the logarithms: they are made relative
to the mean score first, which leaves little to round.
"""

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from export.graph.edits import given
from export.graph.widen import NARROW

from .graph_edits import cast, ints, number, static_size

NEVER = -6e4
"""Where no expert was chosen; finite in fp16, and its exponential is zero."""
_NEVER_IN_FP32 = -1e30
TINY = 1e-30
"""What stands for a score of zero, and for the mean of such ones."""


class Weighing(Protocol):
    """How an operator is told what the experts weigh."""

    def logits(self, tape: ir.tape.Tape) -> ir.Value:
        """Give logarithms of the scores at the chosen experts, much less elsewhere: (N, E)."""

    def scaled(self, tape: ir.tape.Tape, mixed: ir.Value) -> ir.Value:
        """Multiply what the operator divided by back to its mixture (N, C), in fp32."""


@dataclass(frozen=True, kw_only=True)
class WeighedBySum:
    """Any scores, whose sum is made in the graph; satisfies `Weighing`."""

    chosen: ir.Value
    """(N, K) int64."""
    scores: ir.Value
    """(N, K) fp32, none negative."""
    num_experts: int
    dtype: ir.DataType | None
    """In which the operator computes."""

    def logits(self, tape: ir.tape.Tape) -> ir.Value:
        """Scatter the logarithms into rows of one number."""
        is_narrow = self.dtype in NARROW
        relative = tape.op("Div", [self.scores, self._mean(tape)]) if is_narrow else self.scores
        logs = tape.op("Log", [tape.op("Max", [relative, number(tape, TINY)])])
        rows = tape.op("Shape", [self.chosen], {"start": 0, "end": 1})
        shape = tape.op("Concat", [rows, ints(tape, self.num_experts)], {"axis": 0})
        never = NEVER if is_narrow else _NEVER_IN_FP32
        base = tape.op("Expand", [number(tape, never), shape])
        logits = tape.op("ScatterElements", [base, self.chosen, logs], {"axis": 1})
        return cast(tape, logits, given(self.dtype)) if is_narrow else logits

    def scaled(self, tape: ir.tape.Tape, mixed: ir.Value) -> ir.Value:
        """Multiply by the sum of a token's scores."""
        total = tape.op("ReduceSum", [self.scores, ints(tape, -1)], {"keepdims": 1})
        return scaled_in_fp32(tape, mixed, total, self.dtype)

    def _mean(self, tape: ir.tape.Tape) -> ir.Value:
        """Average the scores of each token, (N, 1); of none it is a number that divides nothing."""
        total = tape.op("ReduceSum", [self.scores, ints(tape, -1)], {"keepdims": 1})
        share = number(tape, 1.0 / static_size(self.chosen, 1))
        return tape.op("Max", [tape.op("Mul", [total, share]), number(tape, TINY)])


def scaled_in_fp32(
    tape: ir.tape.Tape, mixed: ir.Value, factor: ir.Value, dtype: ir.DataType | None
) -> ir.Value:
    """Multiply a mixture by a factor in fp32, whatever its own type is."""
    if dtype not in NARROW:
        return tape.op("Mul", [mixed, factor])
    wide = tape.op("Mul", [cast(tape, mixed, ir.DataType.FLOAT), factor])
    return cast(tape, wide, given(dtype))
