"""The highest logit of each row by reductions.

TensorRT's own `ArgMax` and `TopK` promise no order of ties.
"""

import onnx_ir as ir

from ...passes.choose_best import Choice, ChooseBest
from ...passes.graph_edits import ints, static_size


class ChooseBestByReduction(ChooseBest):
    """Give the head the outputs `best` and `energy`, see `ChooseBest`, in reductions of rows."""

    name = "choose-best"

    def choose(self, tape: ir.tape.Tape, logits: ir.Value) -> Choice:
        """Find the maximum, then the least id that has it."""
        zero, one, size = (_number(tape, value) for value in (0, 1, static_size(logits, 1)))
        vocabulary = ints(tape, 1)  # the axis
        most = tape.op("ReduceMax", [logits, vocabulary], {"keepdims": 1})  # (N, 1)
        ids = tape.op("Range", [zero, size, one])  # (V,)
        candidates = tape.op("Where", [tape.op("Equal", [logits, most]), ids, size])  # (N, V)
        return Choice(
            best=tape.op("ReduceMin", [candidates, vocabulary], {"keepdims": 0}),
            energy=tape.op("ReduceSumSquare", [logits, vocabulary], {"keepdims": 0}),
        )


def _number(tape: ir.tape.Tape, value: int) -> ir.Value:
    """Make an int32 scalar; `value_int` is an int64."""
    number = tape.op("Constant", [], {"value_int": value})
    return tape.op("Cast", [number], {"to": ir.DataType.INT32.value})
