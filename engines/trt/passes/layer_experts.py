"""TensorRT's own mixture-of-experts layer, where the hardware has it.

Compute capabilities 10.0, 10.3 and 11.0 only, which TensorRT-RTX does not build for; said to be
slow for more than 16 tokens. Not tried on such a device: only parser and shape inference were.

Source: TensorRT documentation, "MoE (Mixture of Experts)"; the parser's messages about `TRT_MoE`.
"""

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from export.graph.edits import given
from export.graph.functions import OPSET
from runtime.names import DOMAIN, EXPERTS_DOWN, EXPERTS_UP

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes
from ...passes.routed_experts import unpaired
from .stored_experts import ExpertsPair, expert_pairs

LAYER_DOMAIN, LAYER = "trt", "TRT_MoE"
SMS = (100, 103, 110)
"""Compute capabilities that have the layer."""
_SILU = 1
"""Of the attribute `activation_type`; 0, the default, means no activation at all."""

_BODY = f"""
<domain: "{LAYER_DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]>
{LAYER} <activation_type: int> (x, experts, scores, gate, up, down) => (y)
{{
    first = Constant <value_ints: ints = [0]> ()
    rows = Squeeze (x, first)
    row_experts = Squeeze (experts, first)
    row_scores = Squeeze (scores, first)
    wide_scores = Cast <to: int = 1> (row_scores)
    inner = {DOMAIN}.{EXPERTS_UP} (rows, row_experts, gate, up)
    mixed = {DOMAIN}.{EXPERTS_DOWN} (inner, row_experts, wide_scores, down)
    y = Unsqueeze (mixed, first)
}}"""


class LayerExperts:
    """Replace each pair by one layer."""

    name = "layer-experts"

    def __init__(self, sms: Sequence[int]) -> None:
        """Make the pass for the compute capabilities of the engine."""
        self._sms = tuple(sms)

    def requires(self, model: ir.Model) -> str | None:
        """Every device has the layer, and the experts are plain numbers, rounded nowhere."""
        wrong = [f"sm{sm}" for sm in self._sms if sm not in SMS]
        if wrong or unpaired(model):
            return f"no such layer on {wrong[0]}" if wrong else unpaired(model)
        pairs = expert_pairs(model)
        storages = {one.storage for pair in pairs for one in pair.matrices} - {"plain"}
        rounded = [node.name for pair in pairs for node in pair.between()]
        if storages or rounded:
            return f"the layer takes plain experts: {[*storages, *rounded][:3]}"
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace them; graphs without experts stay as they are."""
        for pair in expert_pairs(lowered.model):
            _replace(lowered.model, pair)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No half is left."""
        left = [*neutral_nodes(model, EXPERTS_UP), *neutral_nodes(model, EXPERTS_DOWN)]
        return f"{len(left)} halves left" if left else None


def _replace(model: ir.Model, pair: ExpertsPair) -> None:
    """Put the layer between tokens as one sequence, (1, N, C), and rows (N, C)."""
    function = ir.serde.deserialize_function(onnx.parser.parse_function(_BODY.lstrip()))
    model.functions[function.identifier()] = function
    model.graph.opset_imports[LAYER_DOMAIN] = 1
    hidden, experts, gate, up = pair.up_node.inputs
    scores, down = pair.down_node.inputs[2:]
    tape = ir.tape.Tape()
    axis = tape.op("Constant", [], {"value_ints": [0]})
    typed = tape.op("CastLike", [scores, hidden])
    rows = [tape.op("Unsqueeze", [value, axis]) for value in (hidden, experts, typed)]
    inputs = [*rows, gate, up, down]
    mixed = tape.op(LAYER, inputs, {"activation_type": _SILU}, domain=LAYER_DOMAIN)
    result, old = tape.op("Squeeze", [mixed, axis]), pair.down_node.outputs[0]
    result.type, result.shape = old.type, old.shape
    graph = given(pair.down_node.graph)
    graph.insert_before(pair.down_node, tape.nodes)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove([pair.down_node, pair.up_node], safe=True)
