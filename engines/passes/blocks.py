"""Codes in the order that ONNX Runtime's block kernels read: by output, in blocks of inputs.

A code lies as code + 8 or code + 128, which is unsigned, two int4 ones in a byte, the earlier input
in the low half. It is made of the stored bytes as they are, without a number in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 18
"""Of stored codes that are turned at a time, so that they stay in the core's cache."""
_ZERO = 128
"""As an int8 code lies."""

Packed = NDArray[np.uint8]
"""Stored codes, (in, out * bits / 8)."""


@dataclass(frozen=True, kw_only=True)
class BlockCodes:
    """One tensor of codes; satisfies `weights_file.Values`."""

    name: str
    shape: tuple[int, ...]
    """Whatever the op calls for; the bytes are those of (E, parts * out, in, padded)."""
    bits: int
    matrices: tuple[tuple[Packed, ...], ...]
    """For each expert its parts, whose outputs are interleaved; a linear map is one of one part."""
    padding: int = 0
    """Inputs behind the last one that fill its block, as zeros; only of int8."""

    @property
    def dtype(self) -> ir.DataType:
        """Bytes."""
        return ir.DataType.UINT8

    def blocks(self) -> Iterator[bytes]:
        """Yield some outputs at a time."""
        for parts in self.matrices:
            inputs, width = parts[0].shape
            step = max(1, _CHUNK_BYTES // inputs)
            for start in range(0, width, step):
                chunk = [self._turned(part[:, start : start + step]) for part in parts]
                yield np.stack(chunk, axis=1).tobytes()

    def _turned(self, packed: Packed) -> Packed:
        if self.bits == 4:
            return turned_nibbles(packed)
        return np.pad(turned_bytes(packed), ((0, 0), (0, self.padding)), constant_values=_ZERO)


@dataclass(frozen=True, kw_only=True)
class BlockScales:
    """The scales beside them, in the type in which they are stored; satisfies the same."""

    name: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    matrices: tuple[tuple[NDArray[Any], ...], ...]
    """As of the codes: (blocks, out) each, unsigned integers that hold the numbers' bits."""

    def blocks(self) -> Iterator[bytes]:
        """Yield expert by expert."""
        for parts in self.matrices:
            yield np.stack([part.T for part in parts], axis=1).tobytes()


def turned_nibbles(packed: Packed) -> Packed:
    """(in, out / 2) of int4 codes to (out, in / 2) of code + 8; `in` is even."""
    even, odd = packed[0::2], packed[1::2]
    first = (even & 0x0F) | (odd << 4)
    second = (even >> 4) | (odd & 0xF0)
    turned = np.empty((packed.shape[1], 2, len(even)), dtype=np.uint8)
    turned[:, 0], turned[:, 1] = first.T, second.T
    turned ^= 0x88  # of a number in two's complement: + 8
    return turned.reshape(-1, len(even))


def turned_bytes(packed: Packed) -> Packed:
    """(in, out) of int8 codes to (out, in) of code + 128."""
    return np.ascontiguousarray((packed ^ 0x80).T)
