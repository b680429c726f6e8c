"""Small edits that several passes make: find nodes, look behind values, put others in place."""

from collections.abc import Sequence

import onnx_ir as ir

from export.graph.edits import given
from export.graph.weights_file import Values
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


def without_cast(value: ir.Value) -> ir.Value:
    """Return a weight before it is widened; the value itself if it is computed in another way."""
    return stored_initializer(value) if producer_of(value, "Cast") else value


def data_of(value: ir.Value) -> ir.TensorProtocol:
    """Return what an initialiser holds.

    Raises:
        RuntimeError: it has no values.
    """
    if value.const_value is None:
        raise RuntimeError(f"{value.name} has no weights")
    return value.const_value


def register(graph: ir.Graph, tensors: Sequence[Values]) -> list[ir.Value]:
    """Add initialisers that have no values yet."""
    made = []
    for tensor in tensors:
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape)
        )
        graph.initializers.add(value)
        made.append(value)
    return made


def drop_if_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove an initialiser, and the cast that widens it, when nothing reads it any more."""
    stored, producer = stored_initializer(value), value.producer()
    if producer is not None and not value.uses():
        graph.remove(producer, safe=True)
    if not stored.uses():
        graph.initializers.pop(str(stored.name))


def put_in_place(old: ir.Value, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Let everything that reads a value read another one, which takes its name, type and shape.

    Args:
        old: what a node of a graph gives; that node stays, and nothing reads it.
        new: one of the results of `nodes`.
        nodes: of no graph yet; they come before the node that gives the old value.
    """
    new.name, new.type, new.shape = old.name, old.type, old.shape
    replaced = given(old.producer())
    given(replaced.graph).insert_before(replaced, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def ints(tape: ir.tape.Tape, *values: int) -> ir.Value:
    """Make a constant of int64 numbers, (count,)."""
    return tape.op("Constant", [], {"value_ints": list(values)})


def number(tape: ir.tape.Tape, value: float) -> ir.Value:
    """Make a constant in fp32."""
    return tape.op("Constant", [], {"value_float": value})


def cast(tape: ir.tape.Tape, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Turn a value to a type, which is noted."""
    made = tape.op("Cast", [value], {"to": dtype.value})
    made.type = ir.TensorType(dtype)
    return made
