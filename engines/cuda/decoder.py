"""All layers and the head as one graph, so that one session runs a token.

A call of a session costs the host some tens of microseconds, as long as a layer takes on a card.
Weights stay where the lowered graphs of layers and head have them.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime import names

from ..passes.chain_layers import chain_layers

_SHARED_CONSTANT_NUMBERS = 1 << 12
"""Constants up to this size are compared: frequencies of the rotation, which all layers repeat."""


def join_decoder(layers: Sequence[ir.Model], head: ir.Model, name: str) -> ir.Model:
    """Put lowered layers behind each other and the head behind them.

    What every layer computes alike, positions, angles, the mask, is computed once.

    Args:
        layers: as the passes leave them; they are taken apart.
        head: the same.
        name: of the graph.

    Returns:
        A model with the inputs `hidden`, `lengths`, the cache tensors of each layer under
        `place_name`, `rows`; its outputs are those of the head, then the new state of the caches.
    """
    joined = chain_layers(layers, name)
    _append_head(joined, head)
    _read_sizes_of_inputs(joined.graph)
    common.DeduplicateInitializersPass(size_limit=_SHARED_CONSTANT_NUMBERS)(joined)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(joined)
    common.DeduplicateInitializersPass(size_limit=_SHARED_CONSTANT_NUMBERS)(joined)
    common.CommonSubexpressionEliminationPass()(joined)
    common.RemoveUnusedNodesPass()(joined)
    return joined


def _read_sizes_of_inputs(graph: ir.Graph) -> None:
    """Read a size from the first input that has it, not from what a layer made of that input.

    So the nodes that follow are the same in every layer. Symbols of shapes are the export's: one
    symbol, one size, throughout a graph.
    """
    places: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(given(value.shape)):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                places.setdefault(size.value, (value, axis))
    for node in graph:
        place = places.get(_symbol_read(node) or "")
        if place is not None:
            value, axis = place
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _symbol_read(node: ir.Node) -> str | None:
    """Name the one size that a node reads off a shape, if it is a symbol."""
    if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    bounds = [node.attributes[one].as_int() for one in ("start", "end") if one in node.attributes]
    sizes = list(node.inputs[0].shape)[slice(*bounds)] if len(bounds) == 2 else []
    found = sizes[0] if len(sizes) == 1 else None
    return found.value if isinstance(found, ir.SymbolicDim) else None


def _append_head(joined: ir.Model, head: ir.Model) -> None:
    graph, last = joined.graph, head.graph
    hidden = next(value for value in graph.outputs if value.name == names.HIDDEN_OUT)
    graph.outputs.remove(hidden)
    own = [value for value in last.inputs if value.name != names.HIDDEN]
    (taken,) = (value for value in last.inputs if value.name == names.HIDDEN)
    results, nodes = list(last.outputs), list(last)
    stored = list(last.initializers.values())
    last.outputs.clear()
    last.inputs.clear()
    last.initializers.clear()
    ir.convenience.replace_all_uses_with(taken, hidden)
    between = [value for node in nodes for value in node.outputs if value not in results]
    for node in nodes:
        node.name = f"{last.name}.{node.name}"
    for value in (*between, *stored):
        value.name = f"{last.name}.{value.name}"
    last.remove(nodes)
    graph.inputs.extend(own)
    for value in stored:
        graph.initializers.add(value)
    graph.extend(nodes)
    graph.outputs[:0] = results
    graph.opset_imports.update(last.opset_imports)
