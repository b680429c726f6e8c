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

from ...lowering import Lowered
from ...passes.blocks import BlockCodes, BlockScales
from ...passes.expert_codes import ExpertCodes, SwiGLU, common_block
from ...passes.graph_edits import MICROSOFT, put_in_place, register, static_size
from ...passes.replaced_rounding import before_rounding
from ...passes.routed_experts import RoutedExperts, drop_unused_bodies, routed_experts, unpaired
from ...passes.softmax_mixture import router_logits, scaled_by_sum
from ..expert_sizes import takes_sizes

_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class CodedExperts:
    """Replace ExpertsUp and ExpertsDown over stored codes by `QMoE`.

    A recipe's rounding to int8 around them goes, as with `CodedProducts`. Experts in fp32, or whose
    sizes the kernel does not take, stay as they are.
    """

    name = "coded-experts-by-softmax"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Replace the experts of each layer; graphs without codes of experts stay as they are."""
        model = lowered.model
        found = list(_experts(model))
        weights = [one for experts in found for one in _replace(model.graph, experts)]
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.opset_imports[MICROSOFT] = 1
        drop_unused_bodies(model)
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No experts are left that could be replaced."""
        left = [experts.values.down_node.name for experts in _experts(model)]
        return f"experts with codes left: {left}" if left else None


@dataclass(frozen=True, kw_only=True)
class _Experts:
    """Experts whose codes the kernel takes."""

    values: RoutedExperts
    matrices: SwiGLU
    block: int


def _experts(model: ir.Model) -> Iterator[_Experts]:
    for values in routed_experts(model, before_rounding):
        matrices = SwiGLU.of(values.gate, values.up, values.down)
        block = None if matrices is None else common_block(matrices.matrices)
        if matrices is None or block is None or not _is_taken(matrices, values.hidden):
            continue
        yield _Experts(values=values, matrices=matrices, block=block)


def _is_taken(matrices: SwiGLU, hidden: ir.Value) -> bool:
    """Whether the kernel has these types and sizes."""
    sizes = [one.shape[-2] for one in matrices.matrices]
    return (
        takes_sizes(sizes) and hidden.dtype in _TYPES and matrices.gate.scales.dtype == hidden.dtype
    )


def _replace(graph: ir.Graph, experts: _Experts) -> tuple[BlockCodes | BlockScales, ...]:
    values = experts.values
    codes = ExpertCodes(block=experts.block, routed=experts.matrices, shared=None)
    weights = codes.weights()
    up_codes, up_scales, down_codes, down_scales = register(graph, weights)
    tape = ir.tape.Tape()
    logits = router_logits(
        tape,
        values.chosen,
        values.scores,
        num_experts=experts.matrices.gate.shape[0],
        dtype=values.hidden.dtype,
    )
    inputs = [values.hidden, logits, up_codes, up_scales, None, down_codes, down_scales]
    attributes: dict[str, int | float | str] = {
        "k": static_size(values.chosen, 1),
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
    mixed = tape.op("QMoE", inputs, attributes, domain=MICROSOFT)
    scaled = scaled_by_sum(tape, mixed, values.scores, dtype=values.hidden.dtype)
    put_in_place(values.mixed, scaled, tape.nodes)
    return weights
