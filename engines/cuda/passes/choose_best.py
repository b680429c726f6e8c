"""The highest logit of each row chosen on the device, so that greedy decoding reads no logits.

The outputs are those of the same pass for TensorRT. ONNX Runtime 1.31 gives maxima and minima to
cuDNN, which nothing else here needs; `TopK` with k = 1 is its own kernel. A row is cut into pieces
that one block of threads takes, and the best of them is chosen in the same way.
"""

import onnx_ir as ir

from ...passes.choose_best import Choice, ChooseBest
from ...passes.graph_edits import ints, static_size

_MOST = 1024
"""Numbers that a piece has at most."""


class ChooseBestByTopK(ChooseBest):
    """Give the head the outputs `best` and `energy`, see `ChooseBest`, by `TopK`."""

    name = "choose-best-by-topk"

    def choose(self, tape: ir.tape.Tape, logits: ir.Value) -> Choice:
        """Find the maximum, then the least id that has it."""
        size = static_size(logits, 1)
        most = _extreme(tape, logits, size, is_largest=True)  # (N, 1)
        ids = tape.op("Constant", [], {"value": ir.tensor(list(range(size)), ir.DataType.INT32)})
        nobody = tape.op("Constant", [], {"value": ir.tensor(size, ir.DataType.INT32)})
        candidates = tape.op("Where", [tape.op("Equal", [logits, most]), ids, nobody])  # (N, V)
        least = _extreme(tape, candidates, size, is_largest=False)
        return Choice(
            best=tape.op("Reshape", [least, ints(tape, -1)]),
            energy=tape.op("ReduceSumSquare", [logits, ints(tape, 1)], {"keepdims": 0}),
        )


def _extreme(tape: ir.tape.Tape, rows: ir.Value, size: int, *, is_largest: bool) -> ir.Value:
    """Give the largest or smallest number of each row: (N, size) to (N, 1)."""
    piece = max(one for one in range(1, _MOST + 1) if size % one == 0)
    if 1 < piece < size:
        pieces = tape.op("Reshape", [rows, ints(tape, -1, piece)])
        found = _topmost(tape, pieces, is_largest=is_largest)
        rows = tape.op("Reshape", [found, ints(tape, -1, size // piece)])
    return _topmost(tape, rows, is_largest=is_largest)


def _topmost(tape: ir.tape.Tape, rows: ir.Value, *, is_largest: bool) -> ir.Value:
    values, _ = tape.op_multi_out(
        "TopK",
        [rows, ints(tape, 1)],
        {"axis": -1, "largest": int(is_largest), "sorted": 0},
        num_outputs=2,
    )
    return values
