"""Compute in fp32 whatever the weights are stored in: the CPU has no bf16 matrix product."""

import onnx_ir as ir

from export.graph.widen import NARROW, computed_values, widen_graph

from ...lowering import Lowered


class ComputeInFloat32:
    """Keep 16-bit weights as they are stored; widen them, which is exact, and compute in fp32."""

    name = "compute-in-fp32"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; an fp32 one stays as it is."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Cast each 16-bit initialiser once, and turn every other 16-bit value to fp32."""
        widen_graph(lowered.model)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Nothing but initialisers is 16 bits wide."""
        left = [value.name for value in computed_values(model) if value.dtype in NARROW]
        return f"16-bit values left: {left[:5]}" if left else None
