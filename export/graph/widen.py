"""What a graph means when every 16-bit value is computed in fp32, over weights as they are stored.

Stock ONNX Runtime has no bf16 matrix product on the CPU. A 16-bit weight is widened where it is
read, which is exact: a wide graph shows all that is wrong with a narrow one, apart from rounding.
"""

from collections.abc import Iterator

import onnx_ir as ir

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def widen_graph(model: ir.Model) -> None:
    """Cast each 16-bit initialiser once, and turn every other 16-bit value to fp32, in place."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype in NARROW:
            widen_initializer(graph, value)
    for node in _all_nodes(model):
        _widen_types(node)
    for value in computed_values(model):
        if value.dtype in NARROW:
            value.dtype = ir.DataType.FLOAT


def computed_values(model: ir.Model) -> list[ir.Value]:
    """List inputs, outputs and everything between, but no initialisers."""
    between = [output for node in model.graph.all_nodes() for output in node.outputs]
    return [*model.graph.inputs, *model.graph.outputs, *between]


def widen_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Put a Cast to fp32 between an initialiser and all its users; return the wide value."""
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    wide = cast.outputs[0]
    wide.name = f"{value.name}.fp32"
    wide.dtype, wide.shape = ir.DataType.FLOAT, value.shape
    for user, index in list(value.uses()):
        if user is not cast:
            user.replace_input_with(index, wide)
    graph.insert_before(graph[0], cast)
    return wide


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _widen_types(node: ir.Node) -> None:
    """Let a node that names or holds a 16-bit type do the same in fp32."""
    target = node.attributes.get("to") if node.op_type == "Cast" else None
    if target is not None and ir.DataType(target.as_int()) in NARROW:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    held = node.attributes.get("value") if node.op_type == "Constant" else None
    if held is not None and held.as_tensor().dtype in NARROW:
        wide = ir.tensor(held.as_tensor().numpy().astype("float32"))
        node.attributes["value"] = ir.AttrTensor("value", wide)
