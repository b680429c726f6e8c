"""FP4 on a CPU, which has no kernel for it: the same values as int8, rounding in arithmetic."""

from dataclasses import replace

import onnx_ir as ir

from export.graph.widen_fp4 import has_fp4, misplaced_roundings, widen_fp4

from ...lowering import Lowered


class WidenFP4:
    """Replace FP4 weights by int8 ones, and FP4 rounding of activations by arithmetic."""

    name = "widen-fp4"

    def requires(self, model: ir.Model) -> str | None:
        """Every rounding is followed by the dequantisation that the export puts there."""
        wrong = [node.name for node in misplaced_roundings(model)]
        return f"FP4 roundings without a dequantisation: {wrong[:3]}" if wrong else None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace what there is; graphs without FP4 stay as they are."""
        made = widen_fp4(lowered.model)
        return replace(lowered, new_weights=(*lowered.new_weights, *made))

    def ensures(self, model: ir.Model) -> str | None:
        """No FP4 value is left."""
        return "FP4 left" if has_fp4(model) else None
