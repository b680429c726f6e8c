"""Experts with integer codes as one `QMoE`, which reads the chosen ones' codes and nothing else.

The router stays as it is, in fp32. The operator gets logarithms of its scores, see
`softmax_mixture`: its CUDA kernel weighs by a softmax of `router_probs` and never reads the input
`router_weights`, which the schema has and the kernel of the CPU heeds.

Source: the operator's schema and its CUDA kernel in onnxruntime-gpu 1.31.1 (`moe_quantization.cc`),
which takes fp16 and bf16 only, scales of the same type, gate and up interleaved by rows, and widths
in multiples of 64.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import DOMAIN, EXPERTS_DOWN, EXPERTS_UP

from ..cpu.blocks import BlockCodes, BlockScales, register
from ..cpu.bodies import MICROSOFT
from ..cpu.expert_codes import ExpertCodes, SwiGLU, common_block
from ..cpu.replaced_rounding import before_rounding
from ..cpu.softmax_mixture import router_logits, scaled_by_sum
from ..graph_edits import neutral_nodes, static_size
from ..lowering import Lowered
from .expert_sizes import takes_sizes

_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class CodedExperts:
    """Replace ExpertsUp and ExpertsDown over stored codes by `QMoE`.

    A recipe's rounding to int8 around them goes, as with `CodedProducts`. Experts in fp32, or whose
    sizes the kernel does not take, stay as they are.
    """

    name = "coded-experts-by-softmax"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        ups, downs = (neutral_nodes(model, op_type) for op_type in (EXPERTS_UP, EXPERTS_DOWN))
        return None if len(ups) == len(downs) else f"{len(ups)} {EXPERTS_UP}, {len(downs)} down"

    def run(self, lowered: Lowered) -> Lowered:
        """Replace the experts of each layer; graphs without codes of experts stay as they are."""
        model = lowered.model
        found = list(_experts(model))
        weights = [one for experts in found for one in _replace(model.graph, experts)]
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.opset_imports[MICROSOFT] = 1
        for op_type in (EXPERTS_UP, EXPERTS_DOWN):
            if not neutral_nodes(model, op_type):
                model.functions.pop((DOMAIN, op_type, ""), None)
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No experts are left that could be replaced."""
        left = [experts.down_node.name for experts in _experts(model)]
        return f"experts with codes left: {left}" if left else None


@dataclass(frozen=True, kw_only=True)
class _Experts:
    """The values around one ExpertsDown and its ExpertsUp."""

    down_node: ir.Node
    hidden: ir.Value
    chosen: ir.Value
    scores: ir.Value
    matrices: SwiGLU
    block: int


def _experts(model: ir.Model) -> Iterator[_Experts]:
    for down_node in neutral_nodes(model, EXPERTS_DOWN):
        inner, chosen, scores, down = (given(value) for value in down_node.inputs)
        up_node = before_rounding(inner).producer()
        if up_node is None or up_node.op_type != EXPERTS_UP:
            continue
        hidden = before_rounding(given(up_node.inputs[0]))
        matrices = SwiGLU.of(up_node.inputs[2], up_node.inputs[3], down)
        block = None if matrices is None else common_block(matrices.matrices)
        if matrices is None or block is None or not _is_taken(matrices, hidden):
            continue
        yield _Experts(
            down_node=down_node,
            hidden=hidden,
            chosen=chosen,
            scores=scores,
            matrices=matrices,
            block=block,
        )


def _is_taken(matrices: SwiGLU, hidden: ir.Value) -> bool:
    """Whether the kernel has these types and sizes."""
    sizes = [one.shape[-2] for one in matrices.matrices]
    return (
        takes_sizes(sizes) and hidden.dtype in _TYPES and matrices.gate.scales.dtype == hidden.dtype
    )


def _replace(graph: ir.Graph, experts: _Experts) -> tuple[BlockCodes | BlockScales, ...]:
    codes = ExpertCodes(block=experts.block, routed=experts.matrices, shared=None)
    weights = codes.weights()
    up_codes, up_scales, down_codes, down_scales = register(graph, weights)
    tape = ir.tape.Tape()
    logits = router_logits(
        tape,
        experts.chosen,
        experts.scores,
        num_experts=experts.matrices.gate.shape[0],
        dtype=experts.hidden.dtype,
    )
    inputs = [experts.hidden, logits, up_codes, up_scales, None, down_codes, down_scales]
    attributes: dict[str, int | float | str] = {
        "k": static_size(experts.chosen, 1),
        "quant_type": "int",
        "expert_weight_bits": codes.bits,
        "block_size": codes.block,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 1,
        "weights_prepacked": 0,
    }
    old = experts.down_node.outputs[0]
    mixed = tape.op("QMoE", inputs, attributes, domain=MICROSOFT)
    scaled = scaled_by_sum(tape, mixed, experts.scores, dtype=experts.hidden.dtype)
    scaled.name, scaled.type, scaled.shape = old.name, old.type, old.shape
    graph.insert_before(experts.down_node, tape.nodes)
    ir.convenience.replace_all_uses_with(old, scaled)
    return weights
