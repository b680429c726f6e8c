"""Router and experts as our own kernels, which read an expert's codes where they lie.

The pairs of token and expert are sorted by expert once, and both halves follow that order. Reads
each chosen expert's matrices once, however few or many tokens chose it, and computes nothing else.
Every op carries a body, so that ONNX Runtime runs the graph as well; TensorRT takes the plugin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from export.recipe.recipe import WeightFormat
from runtime.names import DOMAIN, EXPERTS_DOWN, EXPERTS_UP, ROUTER
from runtime.plugins.launch import GROUPED_DOWN, GROUPED_UP, SORT_BY_EXPERT

from ...kernels.attributes import plugin_attributes
from ...kernels.ops import grouped_down_op, grouped_up_op, router_op, sort_op
from ...kernels.specs import ExpertFormat, ExpertSizes, OpSpec
from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes, static_size
from ...passes.inline_bodies import PLUGIN_NAMESPACE
from ...passes.routed_experts import unpaired
from .bodies import add_function, replace_by_function
from .stored_experts import ExpertsPair, StoredMatrix, expert_pairs

_BASES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}

_SORT = f"""
{SORT_BY_EXPERT} <num_experts: int> (experts) => (order, starts)
{{
    all = Constant <value_ints: ints = [-1]> ()
    flat = Reshape (experts, all)
    num_pairs = Size (flat)
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    places = Range (zero, num_pairs, one)
    scaled = Mul (flat, num_pairs)
    keys = Add (scaled, places)
    k = Reshape (num_pairs, all)
    sorted_keys, order_wide = TopK <axis: int = 0, largest: int = 0> (keys, k)
    order = Cast <to: int = 6> (order_wide)
    count = Constant <value_int: int = @num_experts> ()
    end = Add (count, one)
    ids = Range (zero, end, one)
    id_column = Unsqueeze (ids, all)
    is_before = Less (flat, id_column)
    before = Cast <to: int = 6> (is_before)
    starts = ReduceSum <keepdims: int = 0> (before, all)
}}"""
_UP = f"""
{GROUPED_UP} <block_size: int> (hidden, experts, order, starts, {{inputs}}) => (inner)
{{{{
{{meanings}}    inner = {DOMAIN}.{EXPERTS_UP} (hidden, experts, gate_meaning, up_meaning)
}}}}"""
# Whose pair stands at a place of the order follows from `starts`; put back into the pairs' order.
_DOWN = f"""
{GROUPED_DOWN} <block_size: int> (inner, scores, order, starts, {{inputs}}) => (parts)
{{{{
{{meanings}}    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    all = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_ints: ints = [0]> ()
    num_pairs = Size (order)
    places = Range (zero, num_pairs, one)
    place_column = Unsqueeze (places, all)
    starts_wide = Cast <to: int = 7> (starts)
    has_begun = LessOrEqual (starts_wide, place_column)
    begun = Cast <to: int = 7> (has_begun)
    num_begun = ReduceSum <keepdims: int = 0> (begun, all)
    sorted_experts = Sub (num_begun, one)
    unset = Sub (num_begun, num_begun)
    flat_experts = ScatterElements <axis: int = 0> (unset, order, sorted_experts)
    pairs_shape = Shape (scores)
    experts = Reshape (flat_experts, pairs_shape)
    matrices = Gather <axis: int = 0> (down_meaning, experts)
    row_axis = Constant <value_ints: ints = [2]> ()
    rows = Unsqueeze (inner, row_axis)
    part_rows = MatMul (rows, matrices)
    unscored = Squeeze (part_rows, row_axis)
    score_column = Unsqueeze (scores, all)
    unscored_wide = Cast <to: int = 1> (unscored)
    parts_wide = Mul (unscored_wide, score_column)
    parts = CastLike (parts_wide, inner)
}}}}"""
_PLAIN = "    {m}_meaning = Identity ({m})\n"
_CODES = (
    "    {m}_meaning = DequantizeLinear <axis: int = 1, block_size: int = @block_size>"
    " ({m}, {m}_scale)\n"
)


class PluginExperts:
    """Replace routers and experts by the ops that our plugins implement."""

    name = "plugin-experts"

    def __init__(self, sms: Sequence[int]) -> None:
        """Make the pass for compute capabilities, as in (89, 120), each of which gets kernels."""
        self._sms = tuple(sms)
        self._compiled: list[tuple[OpSpec, Mapping[str, str]]] = []

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs, one for each router."""
        routers, pairs = neutral_nodes(model, ROUTER), neutral_nodes(model, EXPERTS_UP)
        if len(routers) != len(pairs):
            return f"{len(routers)} routers, {len(pairs)} layers of experts"
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each router and each pair; graphs without experts stay as they are.

        Raises:
            UnsupportedError: the kernels do not read this format, or not on these devices.
        """
        model = lowered.model
        for router, pair in zip(neutral_nodes(model, ROUTER), expert_pairs(model), strict=True):
            self._replace(model, router, pair)
        common.RemoveUnusedNodesPass()(model)  # what all codes of a stack mean
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Every op of ours in the place of a router or experts has its plugin."""
        left = [
            node.name
            for op_type in (ROUTER, EXPERTS_UP, EXPERTS_DOWN)
            for node in neutral_nodes(model, op_type)
            if PLUGIN_NAMESPACE not in node.attributes
        ]
        return f"without a plugin: {left[:3]}" if left else None

    def _replace(self, model: ir.Model, router: ir.Node, pair: ExpertsPair) -> None:
        ops = _Ops.of(router, pair)
        self._attach(router, ops.route)
        tape = ir.tape.Tape()
        experts = given(pair.up_node.inputs[1])
        count = {"num_experts": ops.sizes.num_experts}
        sort = add_function(model, _SORT)
        pairs = tape.op_multi_out(sort, [experts], count, domain=DOMAIN, num_outputs=2)
        pairs[0].dtype = pairs[1].dtype = ir.DataType.INT32
        given(pair.up_node.graph).insert_before(pair.up_node, tape.nodes)
        self._attach(given(pairs[0].producer()), ops.sort)
        down = _replace_down(model, pair, pairs)  # from behind: a pair is found by its halves
        self._attach(down, ops.down)
        self._attach(_replace_up(model, pair, pairs), ops.up)

    def _attach(self, node: ir.Node, op: OpSpec) -> None:
        """Let a node carry its kernels; those of equal ops are compiled once."""
        known = [attributes for spec, attributes in self._compiled if spec == op]
        if not known:
            known = [plugin_attributes(op, self._sms)]
            self._compiled.append((op, known[0]))
        for name, value in known[0].items():
            node.attributes[name] = ir.Attr(name, ir.AttributeType.STRING, value)


@dataclass(frozen=True, kw_only=True)
class _Ops:
    """The four ops of one layer, for its sizes and formats."""

    sizes: ExpertSizes
    route: OpSpec
    sort: OpSpec
    up: OpSpec
    down: OpSpec

    @classmethod
    def of(cls, router: ir.Node, pair: ExpertsPair) -> "_Ops":
        sizes = _sizes(pair)
        scale, normalize = (router.attributes[name] for name in ("scale", "normalize"))
        return cls(
            sizes=sizes,
            route=router_op(sizes, scale=scale.as_float(), normalize=bool(normalize.as_int())),
            sort=sort_op(sizes),
            up=grouped_up_op(sizes, _format(pair.gate)),
            down=grouped_down_op(sizes, _format(pair.down)),
        )


def _replace_up(model: ir.Model, pair: ExpertsPair, pairs: Sequence[ir.Value]) -> ir.Node:
    """Let a plugin make the inner values (N, K, I)."""
    gate, up = pair.gate, pair.up
    inputs = [*pair.up_node.inputs[:2], *pairs, *gate.given_values, *up.given_values]
    body = _body(_UP, gate=gate, up=up)
    return replace_by_function(model, pair.up_node, body, inputs, _block(gate))


def _replace_down(model: ir.Model, pair: ExpertsPair, pairs: Sequence[ir.Value]) -> ir.Node:
    """Let a plugin make weighted parts (N, K, C), and sum them over K."""
    node, down = pair.down_node, pair.down
    inner, _, scores, _ = node.inputs
    tape = ir.tape.Tape()
    op = add_function(model, _body(_DOWN, down=down))
    inputs = [inner, scores, *pairs, *down.given_values]
    parts = tape.op(op, inputs, _block(down), domain=DOMAIN)
    ranks = tape.op("Constant", [], {"value_ints": [1]})
    mixed, old = tape.op("ReduceSum", [parts, ranks], {"keepdims": 0}), node.outputs[0]
    mixed.type, mixed.shape = old.type, old.shape
    given(node.graph).insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(old, mixed, replace_graph_outputs=True)
    given(node.graph).remove(node, safe=True)
    return given(parts.producer())


def _block(matrix: StoredMatrix) -> dict[str, int]:
    """Say how many inputs share a scale, for the op's body."""
    return {"block_size": _format(matrix).group or static_size(matrix.meaning, 1)}


def _sizes(pair: ExpertsPair) -> ExpertSizes:
    gate = pair.gate.meaning
    return ExpertSizes(
        width=static_size(gate, 1),
        inner=static_size(gate, 2),
        num_experts=static_size(gate, 0),
        num_chosen=static_size(given(pair.up_node.inputs[1]), 1),
    )


def _format(matrix: StoredMatrix) -> ExpertFormat:
    """Say in what a matrix is stored, in the words of the kernels."""
    base = _BASES[given(matrix.meaning.dtype)]
    if matrix.storage == "plain" or matrix.scale is None:
        return ExpertFormat(base=base, weights=None)
    groups, inputs = static_size(matrix.scale, 1), static_size(matrix.meaning, 1)
    group = inputs // groups if groups > 1 or matrix.storage == "int4" else None
    return ExpertFormat(base=base, weights=WeightFormat(codes=matrix.storage, group=group))


def _body(text: str, **matrices: StoredMatrix) -> str:
    """Fill in how matrices are given to a body, and what they mean."""
    is_plain = all(one.scale is None for one in matrices.values())
    inputs = [name if is_plain else f"{name}, {name}_scale" for name in matrices]
    meanings = [(_PLAIN if is_plain else _CODES).format(m=name) for name in matrices]
    return text.format(inputs=", ".join(inputs), meanings="".join(meanings))
