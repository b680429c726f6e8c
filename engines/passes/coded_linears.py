"""Linear maps over stored codes: where a graph has them, and one operator in the place of each."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.edits import given
from runtime.names import block_scales_name, blocks_name

from .blocks import BlockCodes, BlockScales
from .graph_edits import put_in_place, register
from .stored_codes import StoredCodes, stored_codes


@dataclass(frozen=True, kw_only=True)
class CodedLinear:
    """A product with a matrix of stored codes."""

    node: ir.Node
    matrix: StoredCodes

    @property
    def x(self) -> ir.Value:
        """What the matrix is multiplied with."""
        return given(self.node.inputs[0])

    def replace(
        self, op_type: str, domain: str, x: ir.Value
    ) -> tuple[BlockCodes | BlockScales, ...]:
        """Put an operator of the form of `MatMulNBits` in the product's place.

        Args:
            op_type: the operator.
            domain: of it.
            x: its first input, before or after a rounding; codes and scales follow.

        Returns:
            Its codes and scales, laid out anew; the graph has them as initialisers without values.
        """
        matrix = self.matrix
        weights = linear_weights(matrix)
        inputs, outputs = matrix.shape
        made = ir.node(
            op_type,
            [x, *register(given(self.node.graph), weights)],
            {"K": inputs, "N": outputs, "bits": matrix.bits, "block_size": matrix.block},
            domain=domain,
            name=self.node.name,
        )
        put_in_place(self.node.outputs[0], made.outputs[0], [made])
        return weights


def coded_linears(model: ir.Model) -> list[CodedLinear]:
    """List the products with codes that can be laid out in blocks; stacks are left out."""
    return [
        CodedLinear(node=node, matrix=matrix)
        for node in model.graph
        if node.domain == "" and node.op_type == "MatMul"
        if (matrix := stored_codes(node.inputs[1])) is not None and len(matrix.shape) == 2
    ]


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
