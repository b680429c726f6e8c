"""Features of an image in fp32, as they cross the border to the host, which has no bf16."""

import onnx_ir as ir

from runtime.names import FEATURES

from ...lowering import Lowered


class WideFeatures:
    """Widen the output `features`, whatever the graph computes in."""

    name = "wide-features"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; one without features, or with wide ones, stays as it is."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Put a Cast behind the output."""
        graph = lowered.model.graph
        for place, value in enumerate(graph.outputs):
            if value.name == FEATURES and value.dtype != ir.DataType.FLOAT:
                value.name = f"{FEATURES}.narrow"
                cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
                wide = cast.outputs[0]
                wide.name, wide.shape = FEATURES, value.shape
                wide.type = ir.TensorType(ir.DataType.FLOAT)
                graph.append(cast)
                graph.outputs[place] = wide
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Features are fp32."""
        found = [one.dtype for one in model.graph.outputs if one.name == FEATURES]
        return None if set(found) <= {ir.DataType.FLOAT} else f"features are {found[0]}"
