"""A router that gives the scores as they are: without their sum, division and constant factor.

An operator that weighs by a softmax normalises by itself; the division in front of it would be
undone. How experts are chosen is cut out of the neutral body and so the same.
"""

from typing import NamedTuple

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import DOMAIN, ROUTER

_NEUTRAL = (DOMAIN, ROUTER, "")
_PLAIN = "plain"
"""Overload of the op whose body ends at the chosen experts' scores."""


class Normalised(NamedTuple):
    """A router whose scores are shares of their sum, times a factor."""

    node: ir.Node
    factor: float


def normalised_router(model: ir.Model, scores: ir.Value) -> Normalised | None:
    """Look behind scores; None unless a router divides them by their sum for one reader alone."""
    node = scores.producer()
    if node is None or node.op_identifier() != _NEUTRAL or _NEUTRAL not in model.functions:
        return None
    if len(scores.uses()) != 1 or scores.is_graph_output():
        return None
    factor = node.attributes["scale"].as_float()
    if not node.attributes["normalize"].as_int() or factor <= 0:
        return None
    is_known = _plain_scores(model.functions[_NEUTRAL]) is not None
    return Normalised(node, factor) if is_known else None


def give_plain_scores(model: ir.Model, router: ir.Node) -> None:
    """Let a router's scores be what the sigmoid gives, for the experts that it chose before."""
    router.overload = _PLAIN
    key = router.op_identifier()
    if key not in model.functions:
        body = model.functions[_NEUTRAL].clone()
        body.overload = _PLAIN
        body.outputs[1] = given(_plain_scores(body))
        _drop_unused(body)
        model.functions[key] = body


def _plain_scores(body: ir.Function) -> ir.Value | None:
    """What is picked of all scores by the chosen experts' ids."""
    experts = body.outputs[0]
    found = [
        node.outputs[0]
        for node in body
        if node.op_type == "GatherElements" and node.inputs[1] is experts
    ]
    return found[0] if len(found) == 1 else None


def _drop_unused(body: ir.Function) -> None:
    """Take away what led to the output that there was."""
    for node in reversed(list(body)):
        if not any(value.uses() or value in body.outputs for value in node.outputs):
            body.remove(node, safe=True)
