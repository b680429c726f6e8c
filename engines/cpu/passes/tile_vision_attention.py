"""Vision attention for the CPU: `MultiHeadAttention`, whose kernel works in tiles.

The standard Attention operator holds all scores at once, 16 heads x P x P numbers: 20 GB for the
largest image of Thinking-2506. The tiled kernel holds a few rows of them.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import MICROSOFT

from ...lowering import Lowered
from ...passes.graph_edits import producer_of, static_size


class TileVisionAttention:
    """Replace Attention between head splits and joins by `MultiHeadAttention` on joined heads."""

    name = "tile-vision-attention"

    def requires(self, model: ir.Model) -> str | None:
        """Every Attention has no mask and stands between split and joined heads."""
        wrong = [node.name for node in _attentions(model) if _joined(node) is None]
        return (
            f"attention that is not between split and joined heads: {wrong[:3]}" if wrong else None
        )

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each; the splits and joins around it fall away."""
        model = lowered.model
        for node in _attentions(model):
            _tile(model, node)
        common.RemoveUnusedNodesPass()(model)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No Attention is left."""
        return f"{len(_attentions(model))} left" if _attentions(model) else None


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == "" and node.op_type == "Attention"]


def _is_plain(node: ir.Node) -> bool:
    """Whether all patches see all, with the default scale D^-0.5 that both operators share."""
    causal = node.attributes.get("is_causal")
    return "scale" not in node.attributes and (causal is None or causal.as_int() == 0)


def _tile(model: ir.Model, node: ir.Node) -> None:
    joined = _joined(node)
    if joined is None:
        raise RuntimeError(f"{node.name} was not checked")
    query, key, value = (_before_split(source) for source in node.inputs[:3])
    attributes = {"num_heads": static_size(given(node.inputs[0]), 1)}  # (1, H, P, D)
    tiled = ir.node("MultiHeadAttention", [query, key, value], attributes, domain=MICROSOFT)
    out = tiled.outputs[0]
    out.name = f"{joined.name}.tiled"
    out.type, out.shape = joined.type, joined.shape
    model.graph.insert_before(node, tiled)
    model.graph.opset_imports[MICROSOFT] = 1
    ir.convenience.replace_all_uses_with(joined, out)


def _before_split(value: ir.Value | None) -> ir.Value | None:
    """(1, P, H * D) behind Transpose(Reshape(it)), or None."""
    transpose = producer_of(value, "Transpose")
    reshape = producer_of(transpose.inputs[0], "Reshape") if transpose else None
    return reshape.inputs[0] if reshape else None


def _joined(node: ir.Node) -> ir.Value | None:
    """(1, P, H * D) made from an attention's result by Transpose and Reshape, or None."""
    sources = [_before_split(value) for value in node.inputs[:3]]
    if len(node.inputs) != 3 or None in sources:
        return None
    value: ir.Value = node.outputs[0]
    for op_type in ("Transpose", "Reshape"):
        users = list(value.uses())
        if len(users) != 1 or users[0].node.op_type != op_type:
            return None
        value = users[0].node.outputs[0]
    return value
