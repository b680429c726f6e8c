"""Linear maps with integer codes as `MatMulNBits`, which reads the codes and never widens them."""

from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes import common

from runtime.names import BLOCK_LINEAR, CPU_DOMAIN

from ...lowering import Lowered
from ...passes.coded_linears import CodedLinear, coded_linears
from ...passes.replaced_rounding import as_it_is, before_rounding
from .bodies import add_body


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
        found = self._found(model)
        if not found:
            return lowered
        look = before_rounding if self.may_round else as_it_is
        weights = [
            weight for one in found for weight in one.replace(BLOCK_LINEAR, CPU_DOMAIN, look(one.x))
        ]
        common.RemoveUnusedNodesPass()(model)
        add_body(model, BLOCK_LINEAR, may_round=self.may_round)
        return replace(lowered, new_weights=(*lowered.new_weights, *weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No product is left that could be replaced."""
        left = [one.node.name for one in self._found(model)]
        return f"products with codes left: {left[:3]}" if left else None

    def _found(self, model: ir.Model) -> list[CodedLinear]:
        return [one for one in coded_linears(model) if self.may_round or one.matrix.bits == 4]
