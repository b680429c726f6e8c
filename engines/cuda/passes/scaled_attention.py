"""Latent attention with as few launches as its body allows: scaled in the product, never widened.

The neutral body rounds scores to the base type when it multiplies, widens them, scales, masks,
takes the softmax in fp32 and rounds the weights. ONNX Runtime's CUDA kernels do the same with less:
the product takes the scale as its `alpha`, in fp32, before it rounds; `Softmax` reads the base
type, computes in fp32 and rounds its weights once. So a Mul and two Casts go, and no rounding is
added.

Source: names of the kernels that onnxruntime-gpu 1.31.1 launches over stand-ins for CUDA's
libraries: `softmax_warp_forward` and `softmax_block_forward`, whose accumulation type is float.
"""

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import LATENT_ATTENTION, MICROSOFT

from ...lowering import Lowered
from ...passes.graph_edits import ints, neutral_nodes, put_in_place


class ScaledAttention:
    """Put the operators of the CUDA provider in the place of each `LatentAttention`."""

    name = "scaled-attention"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; one without attention stays as it is."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each attention."""
        model = lowered.model
        for node in neutral_nodes(model, LATENT_ATTENTION):
            _replace(model.graph, node)
            model.graph.opset_imports[MICROSOFT] = 1
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No attention is left."""
        left = [node.name for node in neutral_nodes(model, LATENT_ATTENTION)]
        return f"attention left: {left[:3]}" if left else None


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    query, cache, lengths = (given(value) for value in node.inputs)
    scale = node.attributes["scale"].as_float()
    rank = node.attributes["rank"].as_int()
    tape = ir.tape.Tape()
    batch, width = _size(tape, query, 0), _size(tape, cache, 3)
    num_cached = _size(tape, cache, 2)
    tokens_heads = tape.op("Shape", [query], {"start": 0, "end": 3})
    rows = tape.op("Squeeze", [cache, ints(tape, 1)])  # (B, T, R + 64)
    by_row = tape.op("Reshape", [query, _shape(tape, batch, ints(tape, -1), width)])
    products = {"alpha": scale, "transB": 1}
    flat = tape.op("FusedMatMul", [by_row, rows], products, domain=MICROSOFT)
    scores = tape.op("Reshape", [flat, _shape(tape, tokens_heads, num_cached)])  # (B, S, H, T)
    dtype = given(query.dtype)
    hidden = tape.op("Constant", [], {"value": ir.tensor(float("-inf"), dtype)})
    visible = _visible(tape, query, cache, lengths)
    weights = tape.op("Softmax", [tape.op("Where", [visible, scores, hidden])], {"axis": -1})
    flat = tape.op("Reshape", [weights, _shape(tape, batch, ints(tape, -1), num_cached)])
    mixed = tape.op("MatMul", [flat, rows])
    whole = tape.op("Reshape", [mixed, _shape(tape, tokens_heads, width)])
    last = ints(tape, -1)
    result = tape.op("Slice", [whole, ints(tape, 0), ints(tape, rank), last])
    put_in_place(node.outputs[0], result, tape.nodes)
    graph.remove(node, safe=True)


def _visible(tape: ir.tape.Tape, query: ir.Value, cache: ir.Value, lengths: ir.Value) -> ir.Value:
    """Tell which rows of the cache each new token sees, (B, S, 1, T)."""
    zero, one = (tape.op("Constant", [], {"value_int": number}) for number in range(2))
    new, cached = (
        tape.op("Range", [zero, tape.op("Squeeze", [count]), one])
        for count in (_size(tape, query, 1), _size(tape, cache, 2))
    )
    positions = tape.op("Add", [tape.op("Unsqueeze", [lengths, ints(tape, -1)]), new])
    return tape.op("LessOrEqual", [cached, tape.op("Unsqueeze", [positions, ints(tape, 2, 3)])])


def _size(tape: ir.tape.Tape, value: ir.Value, axis: int) -> ir.Value:
    return tape.op("Shape", [value], {"start": axis, "end": axis + 1})


def _shape(tape: ir.tape.Tape, *sizes: ir.Value) -> ir.Value:
    return tape.op("Concat", sizes, {"axis": 0})
