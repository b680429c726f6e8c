"""Experts with integer codes as one `QMoE`, which reads the chosen ones' codes and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import BLOCK_EXPERTS, CPU_DOMAIN, EXPERTS_DOWN

from ...lowering import Lowered
from ...passes.blocks import BlockCodes, BlockScales
from ...passes.expert_codes import ExpertCodes, common_block
from ...passes.graph_edits import neutral_nodes, put_in_place, register, static_size
from ...passes.mixture import Mixture
from .bodies import add_body


@dataclass(frozen=True, kw_only=True)
class BlockExperts:
    """Replace ExpertsUp, ExpertsDown and the shared MLP by `BlockExperts`.

    Where activations may not be rounded, the op's body stands in the graph itself, for int4 codes
    only, and experts whose inner values are rounded stay: the operator cannot round there as the
    recipe says. Where they may be, its own rounding takes the place of a recipe's to int8.
    """

    may_round: bool

    @property
    def name(self) -> str:
        """Tells whether what meets the codes is rounded."""
        return "block-experts-rounding-once" if self.may_round else "block-experts"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; one without integer codes of experts stays as it is."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace the experts of each layer."""
        model = lowered.model
        found = list(_mixtures(model, may_round=self.may_round))
        if not found:
            return lowered
        weights = [one for mixture in found for one in _replace(model.graph, mixture)]
        common.RemoveUnusedNodesPass()(model)
        add_body(model, BLOCK_EXPERTS, may_round=self.may_round)
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No experts are left that could be replaced."""
        left = [
            mixture.experts.mixed.name for mixture in _mixtures(model, may_round=self.may_round)
        ]
        return f"experts with codes left: {left}" if left else None


def _mixtures(model: ir.Model, *, may_round: bool) -> Iterator[Mixture]:
    for node in neutral_nodes(model, EXPERTS_DOWN):
        mixture = Mixture.of(node, may_round=may_round)
        if mixture is not None:
            yield mixture


def _replace(graph: ir.Graph, mixture: Mixture) -> tuple[BlockCodes | BlockScales, ...]:
    experts, shared = mixture.experts, mixture.shared
    codes = ExpertCodes(
        block=given(common_block(mixture.matrices)),
        routed=mixture.routed,
        shared=None if shared is None else shared.matrices,
    )
    weights = codes.weights()
    k = static_size(experts.chosen, 1)
    attributes = {
        "bits": codes.bits,
        "block_size": codes.block,
        "k": k,
        "num_shared": codes.num_shared,
        "num_computed": k + codes.num_shared,
    }
    inputs = [experts.hidden, experts.chosen, experts.scores, *register(graph, weights)]
    name = experts.mixed.name
    made = ir.node(BLOCK_EXPERTS, inputs, attributes, domain=CPU_DOMAIN, name=name)
    put_in_place(experts.mixed, made.outputs[0], [made])
    if shared is not None:
        ir.convenience.replace_all_uses_with(shared.sum, shared.routed)
    return weights
