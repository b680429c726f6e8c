"""A part of a graph cut out into a function, with one node in its place."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given


@dataclass(frozen=True, kw_only=True)
class Region:
    """What lies between some values of a graph."""

    inputs: Mapping[str, ir.Value]
    """Where it begins, under the names that the function gives them."""
    outputs: Sequence[ir.Value]
    """Where it ends."""
    stand_ins: Mapping[ir.Value, ir.Value]
    """Values of which only the shape is read, and the input that has the same leading axes."""
    attributes: Mapping[str, ir.Attr]
    """Attributes of nodes in it that become those of the function, under their own names."""

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """List its nodes, in the graph's order.

        Raises:
            RuntimeError: it reads something that is neither an input nor stored in the graph.
        """
        found: set[ir.Node] = set()
        waiting = list(self.outputs)
        borders = {*self.inputs.values(), *self.stand_ins}
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in borders or node in found:
                continue
            if node is not None:
                found.add(node)
                waiting += [one for one in node.inputs if one is not None]
            elif not value.is_initializer():
                raise RuntimeError(f"{value.name} is not among the inputs of the region")
        self._check_stand_ins(found)
        return [node for node in graph if node in found]

    def _check_stand_ins(self, found: Collection[ir.Node]) -> None:
        for value in self.stand_ins:
            readers = [user for user, _ in value.uses() if user in found]
            if any(user.op_type != "Shape" for user in readers):
                raise RuntimeError(f"more than the shape of {value.name} is read")


def cut_out(model: ir.Model, region: Region, domain: str, name: str) -> ir.Node:
    """Make a function of a region and call it in the region's place.

    Nodes of it that others read, too, stay where they are as well.
    """
    graph = model.graph
    nodes = region.nodes(graph)
    function = _function(region, nodes, graph, domain, name)
    model.functions[function.identifier()] = function
    graph.opset_imports[domain] = 1
    call = ir.Node(
        domain,
        name,
        list(region.inputs.values()),
        list(region.attributes.values()),
        num_outputs=len(region.outputs),
        name=name,
    )
    graph.insert_after(nodes[-1], call)
    for old, new in zip(region.outputs, call.outputs, strict=True):
        new.name, old.name = old.name, f"{old.name}.inside"
        new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(region.outputs, call.outputs, replace_graph_outputs=True)
    common.RemoveUnusedNodesPass()(model)
    return call


def _function(
    region: Region, nodes: Sequence[ir.Node], graph: ir.Graph, domain: str, name: str
) -> ir.Function:
    inside = {
        outer: ir.Value(name=inner, type=outer.type, shape=outer.shape)
        for inner, outer in region.inputs.items()
    }
    inputs = list(inside.values())
    inside |= {value: inside[other] for value, other in region.stand_ins.items()}
    copies = list(_copies(region, nodes, inside))
    imports = {one.domain for one in copies}
    body = ir.Graph(
        inputs,
        [inside[value] for value in region.outputs],
        nodes=copies,
        opset_imports={one: graph.opset_imports[one] for one in sorted(imports)},
        name=name,
    )
    attributes = [ir.Attr(key, one.type, None) for key, one in region.attributes.items()]
    return ir.Function(domain, name, graph=body, attributes=attributes)


def _copies(
    region: Region, nodes: Sequence[ir.Node], inside: dict[ir.Value, ir.Value]
) -> Iterator[ir.Node]:
    """Copy nodes; stored values become constants, the function's attributes references."""
    moved = {id(one): key for key, one in region.attributes.items()}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in inside:
                constant = ir.node("Constant", [], {"value": given(value.const_value)})
                constant.outputs[0].name = value.name
                inside[value] = constant.outputs[0]
                yield constant
        attributes = [
            ir.RefAttr(key, moved[id(one)], one.type) if id(one) in moved else one
            for key, one in node.attributes.items()
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else inside[value] for value in node.inputs],
            attributes,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            inside[old] = new
        yield copy
