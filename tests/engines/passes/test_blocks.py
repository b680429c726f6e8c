"""The bytes of codes in blocks, against a layout written out number by number."""

import numpy as np
import onnx_ir as ir
import pytest

import engines.passes.blocks
from engines.passes.blocks import BlockCodes, BlockScales

from .coded_graphs import Array, coded


def stored_bytes(codes: Array, bits: int) -> Array:
    """(in, out) as ONNX packs it: two int4 codes in a byte, the earlier one low."""
    if bits == 8:
        return codes.astype(np.int8).view(np.uint8)
    nibbles = codes.astype(np.int8).view(np.uint8) & 15
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpacked(content: bytes, bits: int) -> Array:
    """Unsigned codes of bytes, in the order in which MatMulNBits reads them."""
    if bits == 8:
        return np.frombuffer(content, np.uint8).astype(int)
    found = []
    for byte in content:
        found += [byte % 16, byte // 16]
    return np.array(found)


@pytest.mark.parametrize("chunk_bytes", [1, 200, 1 << 18])
@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_lie_by_expert_and_output_and_parts_are_interleaved(
    bits: int, num_parts: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.passes.blocks, "_CHUNK_BYTES", chunk_bytes)
    experts = [
        [coded(9 * e + p, (32, 12), bits=bits, group=None).codes for p in range(num_parts)]
        for e in range(3)
    ]
    tensor = BlockCodes(
        name="w",
        shape=(3, 12 * num_parts, 32 * bits // 8),
        bits=bits,
        matrices=tuple(tuple(stored_bytes(part, bits) for part in parts) for parts in experts),
    )
    found = unpacked(b"".join(tensor.blocks()), bits).reshape(3, 12, num_parts, 32)
    for expert, parts in enumerate(experts):
        for index, part in enumerate(parts):
            for output in range(12):
                expected = part[:, output].astype(int) + 2 ** (bits - 1)
                np.testing.assert_array_equal(found[expert, output, index], expected)


def test_the_rest_of_the_last_block_is_zeros() -> None:
    matrix = coded(1, (20, 3), bits=8, group=None).codes
    stored = stored_bytes(matrix, 8)
    tensor = BlockCodes(name="w", shape=(3, 2, 16), bits=8, matrices=((stored,),), padding=12)
    found = unpacked(b"".join(tensor.blocks()), 8).reshape(3, 32)
    np.testing.assert_array_equal(found[:, :20], matrix.T.astype(int) + 128)
    assert (found[:, 20:] == 128).all()


def test_scales_lie_beside_their_codes() -> None:
    first, second = (np.arange(6, dtype=np.uint16).reshape(2, 3) + 10 * n for n in (1, 2))
    tensor = BlockScales(
        name="s", shape=(6, 2), dtype=ir.DataType.BFLOAT16, matrices=((first, second),)
    )
    found = np.frombuffer(b"".join(tensor.blocks()), np.uint16).reshape(3, 2, 2)
    np.testing.assert_array_equal(found[:, 0], first.T)
    np.testing.assert_array_equal(found[:, 1], second.T)
