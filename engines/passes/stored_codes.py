"""Integer codes in a neutral graph: which values mean a stored matrix, and the matrix as it lies.

A matrix is (in, out), or a stack (E, in, out); int4 codes lie two in a byte along the outputs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.edits import given

from .block_size import block_size
from .graph_edits import data_of, producer_of, without_cast

BITS = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class StoredCodes:
    """A matrix of stored codes."""

    codes: ir.Value
    scales: ir.Value
    """The initialiser, not what widens it."""
    group: int | None
    """Inputs that share a scale; None: all of them."""

    @property
    def bits(self) -> int:
        """Size of a code."""
        return BITS[given(self.codes.dtype)]

    @property
    def shape(self) -> tuple[int, ...]:
        """(in, out) or (E, in, out)."""
        return given(self.codes.shape).numpy()

    @property
    def block(self) -> int:
        """Inputs that share a scale once the codes are laid out in blocks."""
        return block_size(self.shape[-2], self.group)

    def packed(self) -> NDArray[np.uint8]:
        """Map the codes as they lie: (..., in, out * bits / 8)."""
        *stack, inputs, outputs = self.shape
        return _mapped(data_of(self.codes)).reshape(*stack, inputs, outputs * self.bits // 8)

    def scale_bits(self) -> NDArray[Any]:
        """Read the scales as unsigned integers of their size: (..., in / group or 1, out)."""
        tensor = data_of(self.scales)
        array = tensor.numpy()
        *stack, _, outputs = self.shape
        return array.view(f"u{array.dtype.itemsize}").reshape(*stack, -1, outputs)


def stored_codes(value: ir.Value | None) -> StoredCodes | None:
    """Tell which codes a value means; None if it is nothing that can be laid out in blocks.

    Such a value is read by one node only, which can be replaced with it.
    """
    node = producer_of(value, "DequantizeLinear")
    if value is None or node is None:
        return None
    if len(node.inputs) != 2 or len(value.uses()) != 1:
        return None
    codes, scales = given(node.inputs[0]), without_cast(given(node.inputs[1]))
    if not (codes.is_initializer() and scales.is_initializer()):
        return None
    if codes.dtype not in BITS or scales.dtype not in _FLOATS:
        return None
    *_, inputs, outputs = given(codes.shape).numpy()
    if codes.dtype == ir.DataType.INT4 and outputs % 2:
        return None  # rows that end within a byte
    scale_shape = given(scales.shape).numpy()
    blocks = scale_shape[-2] if len(scale_shape) > 1 else 1
    group = None if blocks == 1 else inputs // blocks
    return StoredCodes(codes=codes, scales=scales, group=group)


def _mapped(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """Bytes of a tensor; those of a file are not read yet. `numpy()` would unpack int4."""
    if isinstance(tensor, ir.ExternalTensor):
        length = given(tensor.length)
        return np.memmap(tensor.path, np.uint8, "r", offset=tensor.offset or 0, shape=(length,))
    return np.frombuffer(tensor.tobytes(), dtype=np.uint8)
