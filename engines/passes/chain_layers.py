"""Several lowered layers one behind the other, as one graph.

One engine for several layers is one launch for all of them. What each layer has of its own, cache
and weights, is named by its place in the chain, `0.cache`, `1.mlp.gate.weight`: so that one plan
serves every chain of the same kinds of layers.
"""

from collections.abc import Sequence

import onnx_ir as ir

from runtime.names import HIDDEN, HIDDEN_OUT, LENGTHS, WINDOW, place_name

_SHARED = (HIDDEN, LENGTHS, WINDOW)


def chain_layers(models: Sequence[ir.Model], name: str) -> ir.Model:
    """Join lowered decoder layers, each of which reads what the one before wrote.

    Args:
        models: at least one, as the passes leave them; they are taken apart.
        name: of the graph.

    Returns:
        A model with the inputs `hidden`, `lengths` and, if the layers have it, `window`, then those
        of each layer under `place_name`; the outputs are `hidden_out` and those of each layer.

    Raises:
        RuntimeError: layers differ in a function of the same name, or give more than they should.
    """
    first = models[0].graph
    shared = {
        str(value.name): ir.Value(name=value.name, type=value.type, shape=value.shape)
        for value in first.inputs
        if value.name in _SHARED
    }
    opsets = dict(first.opset_imports)
    graph = ir.Graph(list(shared.values()), [], nodes=[], name=name, opset_imports=opsets)
    chained = ir.Model(graph, ir_version=models[0].ir_version, functions=[])
    chained.producer_name = models[0].producer_name
    hidden = shared[HIDDEN]
    for place, model in enumerate(models):
        _join_functions(chained, model)
        hidden = _append(graph, model.graph, place, {**shared, HIDDEN: hidden})
    hidden.name = HIDDEN_OUT
    graph.outputs.insert(0, hidden)
    return chained


def _append(graph: ir.Graph, layer: ir.Graph, place: int, shared: dict[str, ir.Value]) -> ir.Value:
    """Move a layer's nodes behind the others; return the hidden states that it gives."""
    outputs = {str(value.name): value for value in layer.outputs}
    hidden = outputs.pop(HIDDEN_OUT)
    layer.outputs.clear()
    inputs = list(layer.inputs)
    layer.inputs.clear()
    own = [value for value in inputs if value.name not in _SHARED]
    for value in inputs:
        if value.name in _SHARED:
            ir.convenience.replace_all_uses_with(value, shared[str(value.name)])
    stored = list(layer.initializers.values())
    layer.initializers.clear()
    nodes = list(layer)
    for node in layer.all_nodes():
        node.name = place_name(place, str(node.name))
        for value in node.outputs:
            value.name = place_name(place, str(value.name))
    for value in (*own, *stored):
        value.name = place_name(place, str(value.name))
    layer.remove(nodes)
    graph.inputs.extend(own)
    for value in stored:
        graph.initializers.add(value)
    graph.extend(nodes)
    graph.outputs.extend(outputs.values())
    return hidden


def _join_functions(chained: ir.Model, model: ir.Model) -> None:
    for key, function in model.functions.items():
        known = chained.functions.setdefault(key, function)
        if ir.to_proto(known) != ir.to_proto(function):
            raise RuntimeError(f"{model.graph.name}: another body of {key[1]} than before")
    for domain, version in model.graph.opset_imports.items():
        if chained.graph.opset_imports.setdefault(domain, version) != version:
            raise RuntimeError(f"{model.graph.name}: another version of {domain or 'ONNX'}")
