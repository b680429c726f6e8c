"""Gathered or all experts, whichever moves fewer bytes: decided at each call from N.

For an engine that serves both a few tokens and many. Each branch holds its own rounding of the
inner values and its own reading of the weights, so that nothing is computed for the other one.

TensorRT lets nothing narrower than int8 into a branch, and gathers no constants of 8 bits. There
all experts are computed, which moves fewer bytes from the second token of 4-bit codes anyway.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import EXPERTS_DOWN, EXPERTS_UP

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes
from ...passes.routed_experts import unpaired
from .dense_experts import make_dense
from .gathered_experts import make_gathered
from .options import WeightsPlace
from .stored_experts import ExpertsPair, Storage, expert_pairs

_IF = "If"
GATHERED: dict[WeightsPlace, tuple[Storage, ...]] = {
    "external": ("plain", "int8"),
    "embedded": ("plain",),
}
"""What may be gathered in a branch."""


class ConditionalExperts:
    """Put each pair twice into an If: gathered up to `most_gathered` pairs, else dense."""

    name = "conditional-experts"

    def __init__(self, weights: WeightsPlace) -> None:
        self._weights = weights

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each pair; graphs without experts stay as they are."""
        gathered = GATHERED[self._weights]
        for pair in expert_pairs(lowered.model):
            if all(one.storage in gathered for one in pair.matrices):
                _split(lowered.model, pair)
            else:
                make_dense(lowered.model, pair)
        common.RemoveUnusedNodesPass()(lowered.model)  # codes' meanings outside of the branches
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No half is left outside of a branch."""
        left = [*neutral_nodes(model, EXPERTS_UP), *neutral_nodes(model, EXPERTS_DOWN)]
        return f"{len(left)} halves left" if left else None


def _split(model: ir.Model, pair: ExpertsPair) -> None:
    graph, old = model.graph, pair.down_node.outputs[0]
    experts = given(pair.up_node.inputs[1])
    stem = str(old.name)
    branches, halves = [], []
    for branch in ("few", "many"):
        nodes = _copy(_members(pair), prefix=f"{stem}.{branch}.")
        halves.append(ExpertsPair(up_node=_first(nodes, EXPERTS_UP), down_node=nodes[-1]))
        branches.append(ir.Graph([], list(nodes[-1].outputs), nodes=nodes, name=branch))
    tape = ir.tape.Tape()
    most = tape.op("Constant", [], {"value_int": pair.stack.most_gathered})
    is_few = tape.op("LessOrEqual", [tape.op("Size", [experts]), most])
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    mixed = tape.op(_IF, [is_few], attributes)
    mixed.type, mixed.shape = old.type, old.shape
    graph.insert_before(pair.down_node, tape.nodes)
    ir.convenience.replace_all_uses_with(old, mixed, replace_graph_outputs=True)
    graph.remove([pair.down_node, *reversed(pair.between()), pair.up_node], safe=True)
    make_gathered(model, halves[0])
    make_dense(model, halves[1])


def _members(pair: ExpertsPair) -> list[ir.Node]:
    """List what a branch needs of its own, in order: meanings of weights, both halves, rounding."""
    meanings: dict[ir.Node, None] = {}
    for matrix in pair.matrices:
        chain = []
        node = matrix.meaning.producer()
        while node is not None:
            chain.append(node)
            source = given(node.inputs[0]).producer()
            scale = given(node.inputs[1]).producer() if len(node.inputs) > 1 else None
            node = source or scale
        meanings |= dict.fromkeys(reversed(chain))
    return [*meanings, pair.up_node, *pair.between(), pair.down_node]


def _copy(nodes: Sequence[ir.Node], *, prefix: str) -> list[ir.Node]:
    """Copy nodes with what lies between them; inputs from outside stay."""
    inside: dict[ir.Value, ir.Value] = {}
    copies = []
    for node in nodes:
        inputs = [value and inside.get(value, value) for value in node.inputs]
        outputs = [
            ir.Value(name=f"{prefix}{value.name}", type=value.type, shape=value.shape)
            for value in node.outputs
        ]
        inside |= dict(zip(node.outputs, outputs, strict=True))
        copies.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                attributes=node.attributes.values(),
                outputs=outputs,
                name=f"{prefix}{node.name}",
            )
        )
    return copies


def _first(nodes: Sequence[ir.Node], op_type: str) -> ir.Node:
    return next(node for node in nodes if node.op_type == op_type)
