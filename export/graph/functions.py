"""What each neutral op means: function bodies in standard ops, in ONNX's own text form.

They hold to what every backend takes: no NonZero, no scatter reduction, no Loop, no value named
`_`. All experts are computed and the chosen ones picked, so a body is a reference and not a fast
path; a lowering replaces it where the target has something better.

The same ops as torch functions, with shapes and meaning: `export.modules.ops`.
"""

import onnx
import onnx_ir as ir

from runtime.names import DOMAIN

OPSET = 24
"""ONNX opset of all graphs and bodies: the first with TensorScatter."""

_HEADER = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'

_BODIES = (
    """
Router <k: int, scale: float, normalize: int> (hidden, weight, bias) => (experts, scores)
{
    logits = MatMul (hidden, weight)
    plain = Sigmoid (logits)
    biased = Add (plain, bias)
    k_scalar = Constant <value_int: int = @k> ()
    minus_one = Constant <value_ints: ints = [-1]> ()
    count = Reshape (k_scalar, minus_one)
    best, experts = TopK <axis: int = -1> (biased, count)
    chosen = GatherElements <axis: int = -1> (plain, experts)
    sum = ReduceSum <keepdims: int = 1> (chosen, minus_one)
    tiny = Constant <value_float: float = 1e-20> ()
    safe_sum = Add (sum, tiny)
    one = Constant <value_float: float = 1.0> ()
    flag = Constant <value_int: int = @normalize> ()
    is_normalized = Cast <to: int = 9> (flag)
    divisor = Where (is_normalized, safe_sum, one)
    share = Div (chosen, divisor)
    factor = Constant <value_float: float = @scale> ()
    scores = Mul (share, factor)
}""",
    # (N, C) meets (E, C, I): (E, N, I), turned to (N, E, I), of which K rows are picked.
    """
ExpertsUp (hidden, experts, gate, up) => (inner)
{
    gated = MatMul (hidden, gate)
    half = Sigmoid (gated)
    swished = Mul (gated, half)
    lifted = MatMul (hidden, up)
    all_by_expert = Mul (swished, lifted)
    all_by_token = Transpose <perm: ints = [1, 0, 2]> (all_by_expert)
    chosen_shape = Shape (experts)
    inner_size = Shape <start: int = 2, end: int = 3> (up)
    inner_shape = Concat <axis: int = 0> (chosen_shape, inner_size)
    last = Constant <value_ints: ints = [-1]> ()
    column = Unsqueeze (experts, last)
    index = Expand (column, inner_shape)
    inner = GatherElements <axis: int = 1> (all_by_token, index)
}""",
    # Weighted rows go back to their expert, zeros elsewhere: (N, E, I) to (E, N, I), then a sum.
    """
ExpertsDown (inner, experts, scores, down) => (mixed)
{
    last = Constant <value_ints: ints = [-1]> ()
    score_column = Unsqueeze (scores, last)
    score_typed = CastLike (score_column, inner)
    weighted = Mul (inner, score_typed)
    num_tokens = Shape <start: int = 0, end: int = 1> (inner)
    expert_and_inner = Shape <start: int = 0, end: int = 2> (down)
    full_shape = Concat <axis: int = 0> (num_tokens, expert_and_inner)
    zero = Constant <value_float: float = 0.0> ()
    zero_typed = CastLike (zero, inner)
    zeros = Expand (zero_typed, full_shape)
    weighted_shape = Shape (weighted)
    expert_column = Unsqueeze (experts, last)
    index = Expand (expert_column, weighted_shape)
    by_token = ScatterElements <axis: int = 1> (zeros, index, weighted)
    by_expert = Transpose <perm: ints = [1, 0, 2]> (by_token)
    parts = MatMul (by_expert, down)
    first = Constant <value_ints: ints = [0]> ()
    mixed = ReduceSum <keepdims: int = 0> (parts, first)
}""",
    # Heads and tokens share one matrix product; values are whole rows, cut to the rank at the end.
    """
LatentAttention <rank: int, scale: float> (query, cache, lengths) => (mixed)
{
    batch_tokens_heads = Shape <start: int = 0, end: int = 3> (query)
    batch = Shape <start: int = 0, end: int = 1> (query)
    num_new = Shape <start: int = 1, end: int = 2> (query)
    num_cached = Shape <start: int = 2, end: int = 3> (cache)
    row_size = Shape <start: int = 3, end: int = 4> (cache)
    minus_one = Constant <value_ints: ints = [-1]> ()
    flat_query_shape = Concat <axis: int = 0> (batch, minus_one, row_size)
    flat_query = Reshape (query, flat_query_shape)
    first = Constant <value_ints: ints = [1]> ()
    rows = Squeeze (cache, first)
    columns = Transpose <perm: ints = [0, 2, 1]> (rows)
    flat_scores = MatMul (flat_query, columns)
    score_shape = Concat <axis: int = 0> (batch_tokens_heads, num_cached)
    raw_scores = Reshape (flat_scores, score_shape)
    wide_scores = Cast <to: int = 1> (raw_scores)
    factor = Constant <value_float: float = @scale> ()
    scaled = Mul (wide_scores, factor)
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    no_axes = Constant <value_ints: ints = [0]> ()
    new_count = Squeeze (num_new, no_axes)
    cached_count = Squeeze (num_cached, no_axes)
    new_index = Range (zero, new_count, one)
    cached_index = Range (zero, cached_count, one)
    length_column = Unsqueeze (lengths, minus_one)
    position = Add (length_column, new_index)
    inner_axes = Constant <value_ints: ints = [2, 3]> ()
    position_wide = Unsqueeze (position, inner_axes)
    visible = LessOrEqual (cached_index, position_wide)
    hidden_score = Constant <value_float: float = -inf> ()
    masked = Where (visible, scaled, hidden_score)
    wide_weights = Softmax <axis: int = -1> (masked)
    weights = CastLike (wide_weights, query)
    flat_weight_shape = Concat <axis: int = 0> (batch, minus_one, num_cached)
    flat_weights = Reshape (weights, flat_weight_shape)
    flat_mixed = MatMul (flat_weights, rows)
    mixed_shape = Concat <axis: int = 0> (batch_tokens_heads, row_size)
    mixed_rows = Reshape (flat_mixed, mixed_shape)
    start = Constant <value_ints: ints = [0]> ()
    rank_scalar = Constant <value_int: int = @rank> ()
    rank_end = Reshape (rank_scalar, minus_one)
    mixed = Slice (mixed_rows, start, rank_end, minus_one)
}""",
)


def neutral_functions() -> dict[str, ir.Function]:
    """Parse the bodies; the key is the op's name."""
    parsed = [onnx.parser.parse_function(_HEADER + body.lstrip()) for body in _BODIES]
    return {proto.name: ir.serde.deserialize_function(proto) for proto in parsed}
