"""What the ops of domain `kimivl.cpu` mean: bodies in ONNX Runtime's stock ops.

A library of ours has kernels of the same names. Where it is registered with a session, ONNX Runtime
takes those; where it is not, it puts the body in the node's place.
"""

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.functions import OPSET
from runtime.names import BLOCK_EXPERTS, BLOCK_LINEAR, CPU_DOMAIN, MICROSOFT

ROUNDS_TO_INT8 = 4
"""`accuracy_level` of ONNX Runtime: what meets codes may be rounded to int8, block by block."""
ROUNDS_NOTHING = 0

_HEADER = f'<domain: "{CPU_DOMAIN}", opset_import: ["" : {OPSET}, "{MICROSOFT}" : 1]>\n'

_BLOCK_LINEAR = """
BlockLinear <K: int, N: int, bits: int, block_size: int> (x, codes, scales) => (y)
{
    wide = Cast <to: int = 1> (scales)
    y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits,
        block_size: int = @block_size, accuracy_level: int = ACCURACY> (x, codes, wide)
}"""

# The operator takes the largest of one row of numbers and weighs them by another: ones at what
# the router chose and at the shared experts; its scores, and ones.
_BLOCK_EXPERTS = """
BlockExperts <bits: int, block_size: int, k: int, num_shared: int, num_computed: int>
    (x, experts, scores, up_codes, up_scales, down_codes, down_scales) => (y)
{
    minus_one = Constant <value_ints: ints = [-1]> ()
    num_tokens = Shape <start: int = 0, end: int = 1> (x)
    num_experts = Shape <start: int = 0, end: int = 1> (up_codes)
    shared_scalar = Constant <value_int: int = @num_shared> ()
    shared_count = Reshape (shared_scalar, minus_one)
    routed_count = Sub (num_experts, shared_count)
    routed_shape = Concat <axis: int = 0> (num_tokens, routed_count)
    shared_shape = Concat <axis: int = 0> (num_tokens, shared_count)
    zero = Constant <value_float: float = 0.0> ()
    one = Constant <value_float: float = 1.0> ()
    zeros = Expand (zero, routed_shape)
    chosen_shape = Shape (experts)
    chosen = Expand (one, chosen_shape)
    routed_choice = ScatterElements <axis: int = 1> (zeros, experts, chosen)
    routed_weights = ScatterElements <axis: int = 1> (zeros, experts, scores)
    shared = Expand (one, shared_shape)
    choice = Concat <axis: int = 1> (routed_choice, shared)
    weights = Concat <axis: int = 1> (routed_weights, shared)
    up_wide = Cast <to: int = 1> (up_scales)
    down_wide = Cast <to: int = 1> (down_scales)
    y = com.microsoft.QMoE <k: int = @num_computed, expert_weight_bits: int = @bits,
        block_size: int = @block_size, activation_type: string = "swiglu", swiglu_fusion: int = 1,
        activation_alpha: float = 1.0, activation_beta: float = 0.0, weights_prepacked: int = 0,
        normalize_routing_weights: int = 0, accuracy_level: int = ACCURACY>
        (x, choice, up_codes, up_wide, , down_codes, down_wide, , , , , , , , weights)
}"""

_BODIES = {BLOCK_LINEAR: _BLOCK_LINEAR, BLOCK_EXPERTS: _BLOCK_EXPERTS}


def add_body(model: ir.Model, op_type: str, *, may_round: bool) -> None:
    """Say what one of our ops means; where nothing may be rounded, in the place of each node.

    Our kernels round, so that they must not meet such a node.

    Args:
        model: gets the function, or its nodes, and the opsets that they need.
        op_type: `BlockLinear` or `BlockExperts`.
        may_round: whether ONNX Runtime's kernels may round to int8 what meets codes.
    """
    level = ROUNDS_TO_INT8 if may_round else ROUNDS_NOTHING
    text = _HEADER + _BODIES[op_type].lstrip().replace("ACCURACY", str(level))
    function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    name = function.identifier()
    model.functions[name] = function
    model.graph.opset_imports.update({CPU_DOMAIN: 1, MICROSOFT: 1})
    if not may_round:
        common.InlinePass(lambda one: one.identifier() == name)(model)
