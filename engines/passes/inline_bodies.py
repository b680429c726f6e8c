"""Bodies in the place of our ops, so that every node has a name of its own.

TensorRT's parser would inline them as well, but it gives the nodes of all bodies the same names,
which then tell nothing in logs, profiles and the audit of precisions. ONNX Runtime would, too, but
what several layers compute alike is only found where it stands in the graph.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from runtime.names import DOMAIN

from ..lowering import Lowered

PLUGIN_NAMESPACE = "plugin_namespace"
"""Attribute of a node by which the parser takes a plugin in the place of a body."""


class InlineBodies:
    """Inline every function of our domain but those that a plugin implements."""

    name = "inline-bodies"

    def requires(self, model: ir.Model) -> str | None:
        """Every op of ours has a body."""
        bodiless = [
            node.op_type
            for node in model.graph
            if node.domain == DOMAIN and node.op_identifier() not in model.functions
        ]
        return f"ops without a body: {bodiless[:3]}" if bodiless else None

    def run(self, lowered: Lowered) -> Lowered:
        """Name the nodes of bodies after what they make, then inline."""
        model = lowered.model
        for function in model.functions.values():
            for node in function:
                node.name = node.name or node.outputs[0].name
        kept = _plugin_ops(model)
        common.InlinePass(lambda function: function.identifier() not in kept)(model)
        for key in [key for key in model.functions if key not in kept]:
            model.functions.pop(key)
        common.RemoveUnusedNodesPass()(model)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No op of ours is left without a plugin."""
        left = [
            node.op_type
            for node in model.graph
            if node.domain == DOMAIN and PLUGIN_NAMESPACE not in node.attributes
        ]
        return f"bodies left: {left[:3]}" if left else None


def _plugin_ops(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Ops that a plugin or TensorRT itself implements; their bodies stay for ONNX Runtime."""
    ours = {node.op_identifier() for node in model.graph if PLUGIN_NAMESPACE in node.attributes}
    return ours | {key for key in model.functions if key[0] != DOMAIN}
