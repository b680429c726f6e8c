"""The highest logit of each row chosen on the device, so that greedy decoding reads no logits.

The outputs are those of the same pass for TensorRT. ONNX Runtime 1.31 gives maxima and minima to
cuDNN, which nothing else here needs; `TopK` with k = 1 is its own kernel. A row is cut into pieces
that one block of threads takes, and the best of them is chosen in the same way.
"""

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import BEST, ENERGY

from ..graph_edits import static_size
from ..lowering import Lowered
from ..trt.passes.choose_best import ChooseBest, logits_of

_MOST = 1024
"""Numbers that a piece has at most."""


class ChooseBestByTopK(ChooseBest):
    """Give the head the outputs `best` (N,) int32 and `energy` (N,) fp32, see `ChooseBest`."""

    name = "choose-best-by-topk"

    def run(self, lowered: Lowered) -> Lowered:
        """Add the outputs; graphs without logits stay as they are."""
        for logits in logits_of(lowered.model):
            _choose(lowered.model.graph, logits)
        return lowered


def _choose(graph: ir.Graph, logits: ir.Value) -> None:
    size = static_size(logits, 1)
    tape = ir.tape.Tape()
    most = _extreme(tape, logits, size, is_largest=True)  # (N, 1)
    ids = tape.op("Constant", [], {"value": ir.tensor(list(range(size)), ir.DataType.INT32)})
    nobody = tape.op("Constant", [], {"value": ir.tensor(size, ir.DataType.INT32)})
    candidates = tape.op("Where", [tape.op("Equal", [logits, most]), ids, nobody])  # (N, V)
    best = tape.op("Reshape", [_extreme(tape, candidates, size, is_largest=False), _ints(tape, -1)])
    energy = tape.op("ReduceSumSquare", [logits, _ints(tape, 1)], {"keepdims": 0})  # (N,)
    best.name, best.type = BEST, ir.TensorType(ir.DataType.INT32)
    energy.name, energy.type = ENERGY, logits.type
    best.shape = energy.shape = ir.Shape(given(logits.shape)[:1])
    graph.extend(tape.nodes)
    graph.outputs.extend((best, energy))


def _extreme(tape: ir.tape.Tape, rows: ir.Value, size: int, *, is_largest: bool) -> ir.Value:
    """Give the largest or smallest number of each row: (N, size) to (N, 1)."""
    piece = max(one for one in range(1, _MOST + 1) if size % one == 0)
    if 1 < piece < size:
        pieces = tape.op("Reshape", [rows, _ints(tape, -1, piece)])
        found = _topmost(tape, pieces, is_largest=is_largest)
        rows = tape.op("Reshape", [found, _ints(tape, -1, size // piece)])
    return _topmost(tape, rows, is_largest=is_largest)


def _topmost(tape: ir.tape.Tape, rows: ir.Value, *, is_largest: bool) -> ir.Value:
    values, _ = tape.op_multi_out(
        "TopK",
        [rows, _ints(tape, 1)],
        {"axis": -1, "largest": int(is_largest), "sorted": 0},
        num_outputs=2,
    )
    return values


def _ints(tape: ir.tape.Tape, *values: int) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": list(values)})
