"""The router's scores by multiplying and adding, for devices that have no product in fp32.

TensorRT-RTX does not compile fp32 matrix products for compute capability 7.5, and the router must
not be rounded: two experts of nearly the same score would change places.
"""

from collections.abc import Sequence

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import DOMAIN, ROUTER

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes

_WITHOUT_PRODUCT = 75
_KEY = (DOMAIN, ROUTER, "")


class SumRouterProducts:
    """Write the product in the router's body as a sum of products."""

    name = "sum-router-products"

    def __init__(self, sms: Sequence[int]) -> None:
        """Make the pass for the compute capabilities of the engine; it may have nothing to do."""
        self._is_needed = _WITHOUT_PRODUCT in sms

    def requires(self, model: ir.Model) -> str | None:
        """Every router has a body with one product."""
        if not neutral_nodes(model, ROUTER):
            return None
        count = len(_products(model))
        return None if count == 1 else f"{count} products in the router's body"

    def run(self, lowered: Lowered) -> Lowered:
        """Change the body where a device needs it; all routers of a graph share it."""
        if self._is_needed:
            for product in _products(lowered.model):
                _sum(product)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No product is left where a device has none."""
        return "a product in fp32 is left" if self._is_needed and _products(model) else None


def _products(model: ir.Model) -> list[ir.Node]:
    body = model.functions.get(_KEY)
    return [] if body is None else [node for node in body if node.op_type == "MatMul"]


def _sum(product: ir.Node) -> None:
    """(N, C) and (C, E) to (N, C, 1) * (C, E), summed over C."""
    rows, weight = product.inputs
    tape = ir.tape.Tape()
    last = tape.op("Constant", [], {"value_ints": [2]})
    channels = tape.op("Constant", [], {"value_ints": [1]})
    terms = tape.op("Mul", [tape.op("Unsqueeze", [rows, last]), weight])
    total = tape.op("ReduceSum", [terms, channels], {"keepdims": 0})
    old = product.outputs[0]
    total.name = old.name
    body = given(product.graph)
    body.insert_before(product, tape.nodes)
    ir.convenience.replace_all_uses_with(old, total)
    body.remove(product, safe=True)
