"""The GGUF format, version 3, written in one pass: metadata, names of tensors, their bytes.

Does not know: models, and what the bytes of a tensor stand for.

Source: `ggml/include/gguf.h` of llama.cpp.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, Literal, NamedTuple

Form = Literal["f32", "q4_0", "q8_0"]
Value = str | bool | int | float

ALIGNMENT = 32
"""Of every tensor's first byte, counted from the first tensor; the format's default."""


class Block(NamedTuple):
    """How a number format is laid out: equal blocks of numbers that are neighbours in a row."""

    type_id: int
    """Of `ggml_type`."""
    num_values: int
    size_bytes: int


BLOCKS: dict[Form, Block] = {
    "f32": Block(0, 1, 4),
    "q4_0": Block(2, 32, 18),
    "q8_0": Block(8, 32, 34),
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a file says about a tensor."""

    name: str
    shape: tuple[int, ...]
    """The last axis is contiguous, as in numpy; the file lists the axes the other way round."""
    form: Form

    @property
    def num_blocks(self) -> int:
        """Blocks in all rows."""
        return prod(self.shape) // BLOCKS[self.form].num_values

    @property
    def size_bytes(self) -> int:
        """Bytes without the padding behind them."""
        return self.num_blocks * BLOCKS[self.form].size_bytes


def write_header(
    file: BinaryIO, metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]
) -> None:
    """Write all that stands before the first tensor.

    Args:
        file: at its first byte.
        metadata: an `int` is written as u32, a `float` as f32.
        tensors: in the order in which `write_tensor` gets them.

    Raises:
        ValueError: a row is not a whole number of blocks.
    """
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    offset = 0
    for tensor in tensors:
        block = BLOCKS[tensor.form]
        if tensor.shape[-1] % block.num_values:
            raise ValueError(f"{tensor.name}: {tensor.shape} has no whole {tensor.form} blocks")
        axes = reversed(tensor.shape)
        header += _text(tensor.name) + struct.pack("<I", len(tensor.shape))
        header += b"".join(struct.pack("<Q", size) for size in axes)
        header += struct.pack("<IQ", block.type_id, offset)
        offset += tensor.size_bytes + _padding(tensor.size_bytes)
    file.write(header + bytes(_padding(len(header))))


def write_tensor(file: BinaryIO, tensor: TensorInfo, pieces: Iterable[bytes]) -> None:
    """Write the next tensor piece by piece.

    Raises:
        ValueError: the pieces are not as long as the tensor.
    """
    written = sum(file.write(piece) for piece in pieces)
    if written != tensor.size_bytes:
        raise ValueError(f"{tensor.name}: {written} bytes instead of {tensor.size_bytes}")
    file.write(bytes(_padding(written)))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case _:
            return struct.pack("<I", 8) + _text(value)


def _padding(size_bytes: int) -> int:
    return -size_bytes % ALIGNMENT
