"""Products with one matrix for each head, all slots in one batch of as many as there are heads.

`MatMul` of (B, H, S, in) and (H, in, out) has no stride from one product to the next if B is more
than one. ONNX Runtime's CUDA provider then lists the addresses of all products on the host and
copies three lists to the card at each step, recorded or not. It knows the strides of
(H, B * S, in).

Source: `matmul.cc` (`CanUseStridedBatchedGemm`, `CudaAsyncBuffer`); seen in onnxruntime-gpu 1.31.1
over stand-ins for CUDA's libraries.
"""

from collections.abc import Iterator

import onnx_ir as ir

from export.graph.edits import given

from ...lowering import Lowered
from ...passes.graph_edits import ints, put_in_place, static_size


class ProductsByHead:
    """Bring slots and tokens together before such products, and apart behind them.

    Between the transpositions that the export puts around them, which go.
    """

    name = "products-by-head"

    def requires(self, model: ir.Model) -> str | None:
        """Each such product is between two transpositions of heads and tokens."""
        strange = [product.name for product in _products(model) if _transpositions(product) is None]
        return f"products that are not between transpositions: {strange[:3]}" if strange else None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each product; graphs without any stay as they are."""
        graph = lowered.model.graph
        for product in list(_products(lowered.model)):
            _replace(graph, product)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No such product is left."""
        left = [product.name for product in _products(model)]
        return f"products left: {left[:3]}" if left else None


def _products(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        if node.domain == "" and node.op_type == "MatMul":
            left, right = (_rank(given(value)) for value in node.inputs)
            is_known = left == 4 or (left is None and _transpositions(node) is not None)
            if right == 3 and is_known:  # a product in an inlined body has no rank
                yield node


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _transpositions(product: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Find what is before and behind a product, if both exchange heads and tokens."""
    before = given(product.inputs[0]).producer()
    users = [user for user, _ in product.outputs[0].uses()]
    if before is None or len(users) != 1 or not all(map(_exchanges, (before, *users))):
        return None
    return before, users[0]


def _exchanges(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [0, 2, 1, 3]


def _replace(graph: ir.Graph, product: ir.Node) -> None:
    around = _transpositions(product)
    assert around is not None, f"{product.name}: not between transpositions"
    first, last = around
    by_token, matrices = given(first.inputs[0]), given(product.inputs[1])  # (B, S, H, in)
    heads, inputs, outputs = (static_size(matrices, axis) for axis in range(3))
    tape = ir.tape.Tape()
    rows = tape.op("Reshape", [by_token, ints(tape, -1, heads, inputs)])
    by_head = tape.op("Transpose", [rows], {"perm": [1, 0, 2]})
    by_head.shape, by_head.type = ir.Shape([heads, None, inputs]), matrices.type  # (H, B * S, in)
    made = tape.op("MatMul", [by_head, matrices])
    back = tape.op("Transpose", [made], {"perm": [1, 0, 2]})
    batch, tokens = (
        tape.op("Shape", [by_token], {"start": axis, "end": axis + 1}) for axis in range(2)
    )
    shape = tape.op("Concat", [batch, tokens, ints(tape, heads, outputs)], {"axis": 0})
    result, old = tape.op("Reshape", [back, shape]), last.outputs[0]
    put_in_place(old, result, tape.nodes)
    graph.remove([last, product], safe=True)
    if not first.outputs[0].uses():
        graph.remove(first, safe=True)
