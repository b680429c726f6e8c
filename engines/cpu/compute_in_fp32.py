"""Compute in fp32 whatever the weights are stored in: the CPU has no bf16 matrix product."""

import onnx_ir as ir

from ..graph_edits import widen_initializer
from ..lowering import Lowered

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class ComputeInFloat32:
    """Keep 16-bit weights as they are stored; widen them, which is exact, and compute in fp32."""

    name = "compute-in-fp32"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph without 16-bit constants; an fp32 one stays as it is."""
        constants = [node for node in model.graph if node.op_type == "Constant"]
        narrow = [node.name for node in constants if node.outputs[0].dtype in _NARROW]
        return f"16-bit constants: {narrow[:5]}" if narrow else None

    def run(self, lowered: Lowered) -> Lowered:
        """Cast each 16-bit initialiser once, and turn every other 16-bit value to fp32."""
        graph = lowered.model.graph
        for value in list(graph.initializers.values()):
            if value.dtype in _NARROW:
                widen_initializer(graph, value)
        for node in graph:
            _retarget_cast(node)
        for value in _computed(lowered.model):
            if value.dtype in _NARROW:
                value.dtype = ir.DataType.FLOAT
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Nothing but initialisers is 16 bits wide."""
        left = [value.name for value in _computed(model) if value.dtype in _NARROW]
        return f"16-bit values left: {left[:5]}" if left else None


def _computed(model: ir.Model) -> list[ir.Value]:
    """Inputs, outputs and everything between, but no initialisers."""
    between = [output for node in model.graph for output in node.outputs]
    return [*model.graph.inputs, *model.graph.outputs, *between]


def _retarget_cast(node: ir.Node) -> None:
    target = node.attributes.get("to") if node.op_type == "Cast" else None
    if target is not None and ir.DataType(target.as_int()) in _NARROW:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
