"""The two halves of a layer's routed experts in a neutral graph, and what stands around them."""

from dataclasses import dataclass

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import DOMAIN, EXPERTS_DOWN, EXPERTS_UP

from .graph_edits import neutral_nodes
from .replaced_rounding import Look, as_it_is


@dataclass(frozen=True, kw_only=True)
class RoutedExperts:
    """An ExpertsUp, the ExpertsDown behind it, and what they read."""

    up_node: ir.Node
    down_node: ir.Node
    hidden: ir.Value
    """(N, C)."""
    chosen: ir.Value
    """Ids, (N, K)."""
    scores: ir.Value
    """(N, K)."""
    gate: ir.Value
    up: ir.Value
    down: ir.Value

    @classmethod
    def of(cls, down_node: ir.Node, look: Look = as_it_is) -> "RoutedExperts | None":
        """Look around an ExpertsDown.

        Args:
            down_node: the second half.
            look: gives what hidden and inner values were before a rounding that need not be done.

        Returns:
            None if something that has to be done stands between the halves.
        """
        inner, chosen, scores, down = (given(value) for value in down_node.inputs)
        up_node = look(inner).producer()
        if up_node is None or up_node.op_type != EXPERTS_UP:
            return None
        hidden, _, gate, up = (given(value) for value in up_node.inputs)
        return cls(
            up_node=up_node,
            down_node=down_node,
            hidden=look(hidden),
            chosen=chosen,
            scores=scores,
            gate=gate,
            up=up,
            down=down,
        )

    @property
    def mixed(self) -> ir.Value:
        """Their result, (N, C)."""
        return self.down_node.outputs[0]


def routed_experts(model: ir.Model, look: Look = as_it_is) -> list[RoutedExperts]:
    """List the experts of a graph, without those whose halves are kept apart."""
    found = [RoutedExperts.of(node, look) for node in neutral_nodes(model, EXPERTS_DOWN)]
    return [one for one in found if one is not None]


def unpaired(model: ir.Model) -> str | None:
    """Say what is wrong with the halves of a graph's experts, or nothing."""
    ups, downs = (neutral_nodes(model, op_type) for op_type in (EXPERTS_UP, EXPERTS_DOWN))
    return None if len(ups) == len(downs) else f"{len(ups)} {EXPERTS_UP}, {len(downs)} down"


def drop_unused_bodies(model: ir.Model) -> None:
    """Remove what the halves mean from a graph that has none of them any more."""
    for op_type in (EXPERTS_UP, EXPERTS_DOWN):
        if not neutral_nodes(model, op_type):
            model.functions.pop((DOMAIN, op_type, ""), None)
