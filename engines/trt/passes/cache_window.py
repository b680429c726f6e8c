"""Attention over the first rows of the cache, as many as are in use.

The capacity is fixed, and attention over all of it would read 8192 rows in each layer for a slot
that holds 100. How long a slot is stands in `lengths`, in the device's memory, where no shape may
come from; so the caller says it by the shape of one more input. A multiple of a few hundred rows is
best: every new shape costs TensorRT-RTX a kernel.

Attention itself stays the matrix products of its body, softmax in fp32. All heads of all tokens are
the rows of one product with the cache, which is hence read once for the scores and, mostly from the
device's second-level cache, once for the values. `Attention` with the whole cache as keys and
values would be no better: there is no fused kernel for 576 numbers, and taken apart it repeats the
cache for each head and says nothing of the softmax's precision.
"""

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import LATENT_ATTENTION, WINDOW

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes


class ReadWindow:
    """Let every latent attention read a prefix of the cache that the input `window` measures.

    `window` (W,) int32: only its length is read, the rows of the cache that attention sees, at
    least the longest of `lengths` plus S and at most the capacity.
    """

    name = "read-window"

    def requires(self, model: ir.Model) -> str | None:
        """The input's name is free."""
        taken = [value.name for value in model.graph.inputs if value.name == WINDOW]
        return f"there is an input {WINDOW} already" if taken else None

    def run(self, lowered: Lowered) -> Lowered:
        """Cut the cache before each attention; graphs without one stay as they are."""
        graph = lowered.model.graph
        attentions = neutral_nodes(lowered.model, LATENT_ATTENTION)
        if attentions:
            window = ir.Value(
                name=WINDOW, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["W"])
            )
            graph.inputs.append(window)
            for node in attentions:
                _cut(graph, node, window)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No attention reads a whole cache."""
        whole = [
            node.name
            for node in neutral_nodes(model, LATENT_ATTENTION)
            if given(given(node.inputs[1]).producer()).op_type != "Slice"
        ]
        return f"attention over the whole capacity: {whole[:3]}" if whole else None


def _cut(graph: ir.Graph, attention: ir.Node, window: ir.Value) -> None:
    cache = given(attention.inputs[1])
    tape = ir.tape.Tape()
    start = tape.op("Constant", [], {"value_ints": [0]})
    axis = tape.op("Constant", [], {"value_ints": [2]})
    rows = tape.op("Slice", [cache, start, tape.op("Shape", [window]), axis])
    rows.type = cache.type
    if cache.shape is not None:
        rows.shape = ir.Shape([*cache.shape[:2], "W", cache.shape[3]])
    graph.insert_before(attention, tape.nodes)
    attention.replace_input_with(1, rows)
