"""Matrix products, and how their two sides were rounded; what several passes look for.

Works on flat graphs: bodies are inlined before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from export.graph.edits import given

_SAME_VALUES = {"Cast", "Expand", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Ops behind which every number is one that was there before."""
_ROUNDERS = {"QuantizeLinear", "TRT_FP4DynamicQuantize"}


@dataclass(frozen=True, kw_only=True)
class Product:
    """One MatMul."""

    node: ir.Node
    left: ir.Node | None
    """The DequantizeLinear that gives the left side, if that was rounded."""
    right: ir.Node | None
    """The DequantizeLinear that gives the right side, if that is codes."""

    @property
    def left_codes(self) -> ir.DataType | None:
        """Type that the left side was rounded to."""
        return None if self.left is None else given(self.left.inputs[0]).dtype

    @property
    def right_codes(self) -> ir.DataType | None:
        """Type of the right side's codes."""
        return None if self.right is None else given(self.right.inputs[0]).dtype

    @property
    def right_scale(self) -> ir.Value | None:
        """Scale of the right side's codes."""
        return None if self.right is None else given(self.right.inputs[1])


def products(model: ir.Model) -> list[Product]:
    """List all matrix products, subgraphs included."""
    return [
        Product(
            node=node,
            left=_dequantisation(node.inputs[0], is_rounded=True),
            right=_dequantisation(node.inputs[1], is_rounded=False),
        )
        for node in model.graph.all_nodes()
        if node.op_type == "MatMul"
    ]


def number_type(value: ir.Value) -> ir.DataType:
    """Find the type of a value of rounded numbers, also where a pass noted none."""
    if value.dtype is not None:
        return value.dtype
    node = given(value.producer())
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "DequantizeLinear":
        return number_type(given(node.inputs[1]))
    if node.op_type not in _SAME_VALUES:
        raise RuntimeError(f"{value.name}: made by {node.op_type}, of unknown type")
    return number_type(given(node.inputs[0]))


def products_reading(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the products that a value's numbers meet.

    Raises:
        RuntimeError: they meet anything else.
    """
    for node, index in value.uses():
        if node.op_type in _SAME_VALUES and index == 0:
            yield from products_reading(node.outputs[0])
        elif node.op_type == "MatMul":
            yield node
        else:
            raise RuntimeError(f"{node.name}: {node.op_type} reads rounded values")


def _dequantisation(value: ir.Value | None, *, is_rounded: bool) -> ir.Node | None:
    """Find the dequantisation that a value's numbers come from: of rounded values, or of codes."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _SAME_VALUES:
        node = given(node.inputs[0]).producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    rounder = given(node.inputs[0]).producer()
    was_rounded = rounder is not None and rounder.op_type in _ROUNDERS
    return node if was_rounded == is_rounded else None


def insert_behind(node: ir.Node, tape: ir.tape.Tape, result: ir.Value) -> None:
    """Let everything that reads a node's only output read what a tape made of it."""
    graph, old = given(node.graph), node.outputs[0]
    made = set(tape.nodes)
    result.type, result.shape = old.type, old.shape
    for user, index in list(old.uses()):
        if user not in made:
            user.replace_input_with(index, result)
    if old in graph.outputs:
        graph.outputs[list(graph.outputs).index(old)] = result
        old.name, result.name = f"{old.name}.unscaled", old.name
    graph.insert_after(node, tape.nodes)
