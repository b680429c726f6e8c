"""All experts for all tokens: for a prompt, whose tokens need nearly every expert anyway.

The matrices are read once, however many tokens there are, and stay quantised until a product reads
them. Unlike the neutral bodies the values between the halves keep the order (E, N, I), zero where
an expert was not chosen, and scores meet the results: what rounds the inner values then directly
feeds a product, which TensorRT can compute in the codes' own type.
"""

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import EXPERTS_DOWN, EXPERTS_UP

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes, static_size
from ...passes.routed_experts import unpaired
from .bodies import replace_by_function
from .stored_experts import ExpertsPair, expert_pairs

# Zero is chosen, not multiplied by: an expert that was not chosen may overflow.
_ALL_UP = """
AllExpertsUp <num_experts: int> (hidden, experts, gate, up) => (inner)
{
    gated = MatMul (hidden, gate)
    half = Sigmoid (gated)
    swished = Mul (gated, half)
    lifted = MatMul (hidden, up)
    all = Mul (swished, lifted)
    last = Constant <value_ints: ints = [-1]> ()
    middle = Constant <value_ints: ints = [1]> ()
    count = Constant <value_int: int = @num_experts> ()
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    ids = Range (zero, count, one)
    column = Unsqueeze (experts, last)
    hits = Equal (column, ids)
    hits_wide = Cast <to: int = 1> (hits)
    by_token = ReduceMax <keepdims: int = 0> (hits_wide, middle)
    by_expert = Transpose <perm: ints = [1, 0]> (by_token)
    is_chosen = Cast <to: int = 9> (by_expert)
    chosen_column = Unsqueeze (is_chosen, last)
    nothing = Constant <value_float: float = 0.0> ()
    nothing_typed = CastLike (nothing, all)
    inner = Where (chosen_column, all, nothing_typed)
}"""
_ALL_DOWN = """
AllExpertsDown <num_experts: int> (inner, experts, scores, down) => (mixed)
{
    parts = MatMul (inner, down)
    last = Constant <value_ints: ints = [-1]> ()
    middle = Constant <value_ints: ints = [1]> ()
    count = Constant <value_int: int = @num_experts> ()
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    ids = Range (zero, count, one)
    column = Unsqueeze (experts, last)
    hits = Equal (column, ids)
    score_column = Unsqueeze (scores, last)
    nothing = Constant <value_float: float = 0.0> ()
    spread = Where (hits, score_column, nothing)
    by_token = ReduceSum <keepdims: int = 0> (spread, middle)
    by_expert = Transpose <perm: ints = [1, 0]> (by_token)
    weights = Unsqueeze (by_expert, last)
    parts_wide = Cast <to: int = 1> (parts)
    weighted = Mul (parts_wide, weights)
    first = Constant <value_ints: ints = [0]> ()
    mixed_wide = ReduceSum <keepdims: int = 0> (weighted, first)
    mixed = CastLike (mixed_wide, parts)
}"""


class DenseExperts:
    """Compute every expert for every token, and drop what was not chosen."""

    name = "dense-experts"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Replace both halves of each pair; graphs without experts stay as they are."""
        model = lowered.model
        for pair in expert_pairs(model):
            make_dense(model, pair)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No half is left."""
        left = [*neutral_nodes(model, EXPERTS_UP), *neutral_nodes(model, EXPERTS_DOWN)]
        return f"{len(left)} halves left" if left else None


def make_dense(model: ir.Model, pair: ExpertsPair) -> None:
    """Let a pair compute all experts; values between the halves become (E, N, I)."""
    between = pair.between()
    experts, inner = static_size(pair.up.meaning, 0), pair.up_node.outputs[0]
    tokens, chosen = given(given(pair.up_node.inputs[1]).shape)
    for node in between:
        for value in node.outputs:
            if value.shape is not None and value.shape.rank() == 3 and value.shape[1] == chosen:
                value.shape = ir.Shape([experts, tokens, value.shape[2]])
    inner.shape = ir.Shape([experts, tokens, given(inner.shape)[2]])
    for node, body in ((pair.up_node, _ALL_UP), (pair.down_node, _ALL_DOWN)):
        replace_by_function(model, node, body, list(node.inputs), {"num_experts": experts})
