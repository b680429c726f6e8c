"""Linear maps with integer codes as `MatMulNBits`, which reads the codes and never widens them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import BLOCK_LINEAR, CPU_DOMAIN, block_scales_name, blocks_name

from ..lowering import Lowered
from .blocks import BlockCodes, BlockScales, register
from .bodies import add_body
from .replaced_rounding import before_rounding
from .stored_codes import StoredCodes, stored_codes


@dataclass(frozen=True, kw_only=True)
class BlockLinears:
    """Replace products with stored codes by `BlockLinear`, codes laid out anew.

    Where activations may be rounded, that takes the place of a recipe's int8 rounding. Where they
    may not, the op's body stands in the graph itself, for int4 codes only: ONNX Runtime has no
    kernel for int8 ones that rounds nothing.
    """

    may_round: bool

    @property
    def name(self) -> str:
        """Tells whether what meets the codes is rounded."""
        return "block-linears-rounding-once" if self.may_round else "block-linears"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; one without integer codes stays as it is."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace each product."""
        model = lowered.model
        found = list(_products(model, may_round=self.may_round))
        if not found:
            return lowered
        weights = [one for node, codes in found for one in self._replace(model.graph, node, codes)]
        common.RemoveUnusedNodesPass()(model)
        add_body(model, BLOCK_LINEAR, may_round=self.may_round)
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No product is left that could be replaced."""
        left = [node.name for node, _ in _products(model, may_round=self.may_round)]
        return f"products with codes left: {left[:3]}" if left else None

    def _replace(
        self, graph: ir.Graph, node: ir.Node, stored: StoredCodes
    ) -> tuple[BlockCodes | BlockScales, ...]:
        weights = linear_weights(stored)
        codes, scales = register(graph, weights)
        inputs, outputs = stored.shape
        attributes = {"K": inputs, "N": outputs, "bits": stored.bits, "block_size": stored.block}
        x, old = given(node.inputs[0]), node.outputs[0]
        x = before_rounding(x) if self.may_round else x
        made = ir.node(
            BLOCK_LINEAR, [x, codes, scales], attributes, domain=CPU_DOMAIN, name=node.name
        )
        result = made.outputs[0]
        result.name, result.type, result.shape = old.name, old.type, old.shape
        graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        return weights


def _products(model: ir.Model, *, may_round: bool) -> Iterator[tuple[ir.Node, StoredCodes]]:
    for node in model.graph:
        if node.domain != "" or node.op_type != "MatMul":
            continue
        codes = stored_codes(node.inputs[1])
        if codes is not None and len(codes.shape) == 2 and (may_round or codes.bits == 4):
            yield node, codes


def linear_weights(stored: StoredCodes) -> tuple[BlockCodes, BlockScales]:
    """Lay out one matrix: codes (out, blocks, bytes of a block), scales (out, blocks)."""
    inputs, outputs = stored.shape
    num_blocks = -(-inputs // stored.block)
    return (
        BlockCodes(
            name=blocks_name(str(stored.codes.name)),
            shape=(outputs, num_blocks, stored.block * stored.bits // 8),
            bits=stored.bits,
            matrices=((stored.packed(),),),
            padding=num_blocks * stored.block - inputs,
        ),
        BlockScales(
            name=block_scales_name(str(stored.codes.name)),
            shape=(outputs, num_blocks),
            dtype=given(stored.scales.dtype),
            matrices=((np.broadcast_to(stored.scale_bits(), (num_blocks, outputs)),),),
        ),
    )
