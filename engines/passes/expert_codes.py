"""Which experts can be one operator over codes, shared ones included, and their codes in order.

Shared experts are one MLP in the graph. Where its width is a multiple of an expert's, it is cut
into experts of that width, which every token reads with weight one: gate and up by their outputs,
down by its inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.edits import given
from runtime.names import block_scales_name, blocks_name

from .block_size import common_block_size
from .blocks import BlockCodes, BlockScales, Packed
from .stored_codes import StoredCodes, stored_codes


@dataclass(frozen=True, kw_only=True)
class SwiGLU:
    """Three matrices of stored codes, or stacks of them."""

    gate: StoredCodes
    up: StoredCodes
    down: StoredCodes

    @classmethod
    def of(cls, *meanings: ir.Value | None) -> "SwiGLU | None":
        """Look behind gate, up and down; None if one of them cannot be laid out in blocks."""
        found = [stored_codes(value) for value in meanings]
        gate, up, down = found
        if gate is None or up is None or down is None:
            return None
        return cls(gate=gate, up=up, down=down)

    @property
    def matrices(self) -> tuple[StoredCodes, ...]:
        """All three."""
        return (self.gate, self.up, self.down)

    @property
    def width(self) -> int:
        """Numbers between the halves."""
        return self.down.shape[-2]


def common_block(matrices: Sequence[StoredCodes]) -> int | None:
    """Give the inputs that share a scale, the same in all matrices; None if there is no such one.

    Matrices with one scale for each output take any block that divides their inputs.
    """
    if len({(matrix.bits, matrix.scales.dtype) for matrix in matrices}) > 1:
        return None
    inputs = [matrix.shape[-2] for matrix in matrices]
    return common_block_size(inputs, [matrix.group for matrix in matrices])


@dataclass(frozen=True, kw_only=True)
class ExpertCodes:
    """Routed experts, and shared ones of the same form behind them."""

    block: int
    routed: SwiGLU
    shared: SwiGLU | None

    @property
    def bits(self) -> int:
        """Size of a code."""
        return self.routed.gate.bits

    @property
    def num_shared(self) -> int:
        """Experts that the shared MLP is cut into."""
        return 0 if self.shared is None else self.shared.width // self.routed.width

    def weights(self) -> tuple[BlockCodes | BlockScales, ...]:
        """Lay out codes and scales of up, then of down, for `BlockExperts` and `QMoE`."""
        gate, up, down = (_parts(one, self.block) for one in self.routed.matrices)
        if self.shared is not None:
            gates, ups, downs = (_parts(one, self.block)[0] for one in self.shared.matrices)
            gate += _cut(gates, self.num_shared, axis=1)
            up += _cut(ups, self.num_shared, axis=1)
            down += _cut(downs, self.num_shared, axis=0)
        return (
            *self._tensors(self.routed.gate, [gate, up]),
            *self._tensors(self.routed.down, [down]),
        )

    def _tensors(
        self, first: StoredCodes, parts: Sequence[Sequence["_Part"]]
    ) -> tuple[BlockCodes, BlockScales]:
        """Lay out matrices whose outputs are interleaved, expert by expert.

        They get the name of the first of them.
        """
        parameter = str(first.codes.name)
        _, outputs = parts[0][0].scales.shape
        inputs = parts[0][0].codes.shape[0]
        rows = (len(parts[0]), len(parts) * outputs)
        codes = BlockCodes(
            name=blocks_name(parameter),
            shape=(*rows, inputs * self.bits // 8),
            bits=self.bits,
            matrices=tuple(zip(*([part.codes for part in one] for one in parts), strict=True)),
        )
        scales = BlockScales(
            name=block_scales_name(parameter),
            shape=(*rows, inputs // self.block),
            dtype=given(first.scales.dtype),
            matrices=tuple(zip(*([part.scales for part in one] for one in parts), strict=True)),
        )
        return codes, scales


class _Part(NamedTuple):
    """One matrix of one expert, as it is stored."""

    codes: Packed
    """(in, out * bits / 8)."""
    scales: NDArray[Any]
    """(in / block, out)."""


def _parts(stored: StoredCodes, block: int) -> list[_Part]:
    """Take a stack apart; a single matrix is a stack of one."""
    *_, inputs, outputs = stored.shape
    codes = stored.packed().reshape(-1, inputs, outputs * stored.bits // 8)
    scales = stored.scale_bits().reshape(len(codes), -1, outputs)
    scales = np.broadcast_to(scales, (len(codes), inputs // block, outputs))
    return [_Part(*one) for one in zip(codes, scales, strict=True)]


def _cut(part: _Part, count: int, *, axis: int) -> list[_Part]:
    """Cut a matrix into several, by its inputs (0) or its outputs (1)."""
    pieces = [np.split(one, count, axis=axis) for one in part]
    return [_Part(*pair) for pair in zip(*pieces, strict=True)]
