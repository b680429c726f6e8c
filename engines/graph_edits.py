"""Small edits that several passes make: find nodes, look behind values, drop initialisers."""

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import DOMAIN


def neutral_nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    """List the nodes of one of our own ops."""
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == op_type]


def static_size(value: ir.Value, axis: int) -> int:
    """Return the size of an axis that the trace fixed."""
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise RuntimeError(f"{value.name}: axis {axis} has no fixed size")
    return size


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that gives a value, if it is of some type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def stored_initializer(value: ir.Value) -> ir.Value:
    """Return the initialiser behind a value, looking through a widening cast."""
    producer = value.producer()
    return value if producer is None else given(producer.inputs[0])


def drop_if_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove an initialiser, and the cast that widens it, when nothing reads it any more."""
    stored, producer = stored_initializer(value), value.producer()
    if producer is not None and not value.uses():
        graph.remove(producer, safe=True)
    if not stored.uses():
        graph.initializers.pop(str(stored.name))
