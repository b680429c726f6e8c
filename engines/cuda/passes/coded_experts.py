"""Experts with integer codes as one `QMoE`, which reads the chosen ones' codes and nothing else.

The router stays in fp32 and chooses as it did. The operator gets logarithms of its scores, see
`softmax_mixture` and `share_mixture`: its CUDA kernel weighs by a softmax of `router_probs` and
never reads the input `router_weights`, which the schema has and the kernel of the CPU heeds.

Shared experts of the same form become further experts that every token chooses: three products, an
activation and a sum less. Routed and shared ones are then summed in fp32, with two roundings in the
place of four, and a shared expert's weight is as exact as the routed ones' are.

Source: the operator's schema and its CUDA kernel in onnxruntime-gpu 1.31.1 (`moe_quantization.cc`),
which takes fp16 and bf16 only, scales of the same type, gate and up interleaved by rows, and widths
in multiples of 64.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import EXPERTS_DOWN, MICROSOFT

from ...lowering import Lowered
from ...passes.blocks import BlockCodes, BlockScales
from ...passes.expert_codes import ExpertCodes, SwiGLU, common_block
from ...passes.graph_edits import neutral_nodes, put_in_place, register, static_size
from ...passes.mixture import Mixture
from ...passes.plain_router import Normalised, normalised_router
from ...passes.routed_experts import drop_unused_bodies, unpaired
from ...passes.share_mixture import weighing_of
from ..expert_sizes import takes_shared, takes_sizes

_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class CodedExperts:
    """Replace ExpertsUp, ExpertsDown and the shared MLP over stored codes by `QMoE`.

    A recipe's rounding to int8 around them goes, as with `CodedProducts`. Experts in fp32, or whose
    sizes the kernel does not take, stay as they are; so does a shared MLP of another form, beside a
    router that does not normalise, or with which a token would meet more experts than
    the operator multiplies one by one.
    """

    name = "coded-experts-by-share"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Replace the experts of each layer; graphs without codes of experts stay as they are."""
        model = lowered.model
        found = list(_experts(model))
        weights = [one for experts in found for one in _replace(model, experts)]
        if found:
            common.RemoveUnusedNodesPass()(model)
            model.graph.opset_imports[MICROSOFT] = 1
        drop_unused_bodies(model)
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No experts are left that could be replaced."""
        left = [experts.mixture.experts.mixed.name for experts in _experts(model)]
        return f"experts with codes left: {left}" if left else None


@dataclass(frozen=True, kw_only=True)
class _Experts:
    """The experts of a layer that become one operator, and what weighs them."""

    mixture: Mixture
    codes: ExpertCodes
    router: Normalised | None

    @classmethod
    def of(cls, model: ir.Model, mixture: Mixture) -> "_Experts":
        """Say whether the shared MLP is among them."""
        router = normalised_router(model, mixture.experts.scores)
        block, routed = given(common_block(mixture.routed.matrices)), mixture.routed
        shared = None if mixture.shared is None else mixture.shared.matrices
        alone = ExpertCodes(block=block, routed=routed, shared=None)
        whole = ExpertCodes(block=block, routed=routed, shared=shared)
        are_taken = router is not None and takes_shared(
            by_token=static_size(mixture.experts.chosen, 1),
            experts=routed.gate.shape[0],
            shared=whole.num_shared,
        )
        return cls(mixture=mixture, codes=whole if are_taken else alone, router=router)

    @property
    def num_chosen(self) -> int:
        """Experts of a token, shared ones included."""
        return static_size(self.mixture.experts.chosen, 1) + self.codes.num_shared


def _experts(model: ir.Model) -> Iterator[_Experts]:
    for node in neutral_nodes(model, EXPERTS_DOWN):
        mixture = Mixture.of(node, may_round=True)
        if mixture is not None and _is_taken(mixture.routed, mixture.experts.hidden):
            yield _Experts.of(model, mixture)


def _is_taken(matrices: SwiGLU, hidden: ir.Value) -> bool:
    """Whether the kernel has these types and sizes."""
    sizes = [one.shape[-2] for one in matrices.matrices]
    return (
        takes_sizes(sizes) and hidden.dtype in _TYPES and matrices.gate.scales.dtype == hidden.dtype
    )


def _replace(model: ir.Model, experts: _Experts) -> tuple[BlockCodes | BlockScales, ...]:
    graph, mixture, codes = model.graph, experts.mixture, experts.codes
    weights = codes.weights()
    up_codes, up_scales, down_codes, down_scales = register(graph, weights)
    weighing = weighing_of(
        model,
        mixture.experts,
        experts.router,
        num_experts=codes.routed.gate.shape[0],
        num_shared=codes.num_shared,
    )
    tape = ir.tape.Tape()
    logits = weighing.logits(tape)
    inputs = [mixture.experts.hidden, logits, up_codes, up_scales, None, down_codes, down_scales]
    attributes: dict[str, int | float | str] = {
        "k": experts.num_chosen,
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
    scaled = weighing.scaled(tape, mixed)
    put_in_place(mixture.experts.mixed, scaled, tape.nodes)
    if codes.shared is not None and mixture.shared is not None:
        ir.convenience.replace_all_uses_with(mixture.shared.sum, mixture.shared.routed)
    return weights
