"""Our ops as quick plugins of TensorRT 11, whose kernels TensorRT itself keeps in the plan.

Such a plan runs without Python and without our plugin classes. Each op has a name of its own for
its sizes and formats, under which it is registered; its body follows it there.
"""

from collections.abc import Sequence

import onnx_ir as ir

from runtime.names import DOMAIN
from runtime.plugins.fields import CODE_FIELD, LAUNCH_FIELD

from ...kernels.quick_plugins import quick_attributes, quick_name
from ...kernels.specs import OpSpec
from ...lowering import Lowered
from ...passes.inline_bodies import PLUGIN_NAMESPACE


class QuickNodes:
    """Rename the nodes of plugins that carry their kernels to quick plugins."""

    name = "quick-nodes"

    def __init__(self, ops: Sequence[OpSpec]) -> None:
        """Make the pass for the ops of one model, one of each name."""
        self._ops = {op.op: op for op in ops}

    def requires(self, model: ir.Model) -> str | None:
        """Every plugin is one of the ops."""
        unknown = [node.op_type for node in _carrying(model) if node.op_type not in self._ops]
        return f"plugins of other ops: {unknown[:3]}" if unknown else None

    def run(self, lowered: Lowered) -> Lowered:
        """Rename nodes and bodies; graphs without plugins stay as they are."""
        functions = lowered.model.functions
        for node in _carrying(lowered.model):
            old, new = node.op_identifier(), quick_name(self._ops[node.op_type])
            if old in functions:
                function = functions.pop(old)
                function.name = new
                functions[function.identifier()] = function
            node.op_type = new
            for name in (LAUNCH_FIELD, CODE_FIELD):
                node.attributes.pop(name)
            for name, value in quick_attributes().items():
                node.attributes[name] = ir.convenience.convert_attribute(name, value)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No node carries kernels."""
        left = [node.name for node in _carrying(model)]
        return f"nodes with kernels: {left[:3]}" if left else None


def _carrying(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph.all_nodes()
        if node.domain == DOMAIN and {PLUGIN_NAMESPACE, CODE_FIELD} <= node.attributes.keys()
    ]
