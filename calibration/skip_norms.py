"""Sums and norms that a joined graph has as one operator: measured alone, then taken apart.

The CPU's kernel sums squares in another order than that of the norm alone. Behind it a number that
is rounded, or an expert that is chosen, could change, so that no bound on whole layers would tell a
mistake from that. So each operator is held to what it means, and what is around it to the bit.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.edits import given
from runtime.names import MICROSOFT, SKIP_NORM


def skip_norms(graph: ir.Graph) -> list[ir.Node]:
    """List the operators, each of which gives the norm of a sum, and the sum."""
    return [one for one in graph if (one.domain, one.op_type) == (MICROSOFT, SKIP_NORM)]


def meaning(
    node: ir.Node, left: NDArray[np.float32], right: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Compute in float64, by name, what such an operator should give for rows (B, S, C)."""
    weight = given(given(node.inputs[2]).const_value).numpy().astype(np.float64)
    total = left.astype(np.float64) + right
    mean_square = np.square(total).mean(axis=-1, keepdims=True)
    normalised = total / np.sqrt(mean_square + node.attributes["epsilon"].as_float()) * weight
    first, *_, last = (str(value.name) for value in node.outputs)
    return {first: normalised, last: total}


def split(graph: ir.Graph, node: ir.Node) -> None:
    """Put a sum and a norm in its place, which give values of the same names."""
    left, right, weight = node.inputs
    total = ir.node("Add", [left, right])
    attributes: dict[str, int | float] = {
        "axis": -1,
        "epsilon": node.attributes["epsilon"].as_float(),
    }
    norm = ir.node("RMSNormalization", [total.outputs[0], weight], attributes)
    graph.insert_before(node, [total, norm])
    for new, old in ((norm.outputs[0], node.outputs[0]), (total.outputs[0], node.outputs[-1])):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
