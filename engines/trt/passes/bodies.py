"""Function bodies of a lowering, in ONNX's own text form."""

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from export.graph.edits import given
from export.graph.functions import OPSET
from runtime.names import DOMAIN

from ...passes.graph_edits import put_in_place

_HEADER = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'


def add_function(model: ir.Model, body: str) -> str:
    """Add a body to a model, once, and return the name of the op that it defines.

    Args:
        model: changed in place.
        body: the signature and the nodes, as in `export.graph.functions`.
    """
    function = ir.serde.deserialize_function(onnx.parser.parse_function(_HEADER + body.lstrip()))
    model.functions[function.identifier()] = function
    return function.name


def replace_by_function(
    model: ir.Model,
    node: ir.Node,
    body: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str] | None = None,
) -> ir.Node:
    """Put a node of an op with a body in the place of one with a single output; return it."""
    new = ir.node(add_function(model, body), inputs, attributes or {}, domain=DOMAIN)
    put_in_place(node.outputs[0], new.outputs[0], [new])
    given(node.graph).remove(node, safe=True)
    return new
