"""Weights in one binary file beside the graphs: laid out first, written piece by piece.

Does not know: torch, checkpoints. A tensor begins at a page border if it fills a page, so that it
can be mapped; small ones are packed.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx
import onnx_ir as ir

from runtime.artifact.records import FileRecord
from runtime.files import replacing

WEIGHTS_FOLDER = "weights"
PAGE_BYTES = 4096
_SMALL_ALIGNMENT = 64


class Values(Protocol):
    """One tensor to write: its name, type, shape, and its bytes in order."""

    @property
    def name(self) -> str:
        """Name of the initialiser."""

    @property
    def dtype(self) -> ir.DataType:
        """ONNX element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    def blocks(self) -> Iterable[bytes | memoryview]:
        """Yield the tensor's bytes, a bounded number at a time."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in the file."""

    offset: int
    length: int


def lay_out(tensors: Sequence[Values]) -> dict[str, Place]:
    """Give each tensor its place; pure arithmetic on shapes and types."""
    places: dict[str, Place] = {}
    end = 0
    for tensor in tensors:
        count = 1
        for size in tensor.shape:
            count *= size
        length = (count * tensor.dtype.bitwidth + 7) // 8
        alignment = PAGE_BYTES if length >= PAGE_BYTES else _SMALL_ALIGNMENT
        offset = -(-end // alignment) * alignment
        places[tensor.name] = Place(offset=offset, length=length)
        end = offset + length
    return places


def write_weights(path: Path, tensors: Sequence[Values]) -> FileRecord:
    """Write all tensors to `path`, hashing on the way; memory stays at one block.

    Raises:
        CapacityError: the disk is full.
        ValueError: a tensor's blocks do not add up to its shape (a bug of the caller).
    """
    places = lay_out(tensors)
    digest = hashlib.sha256()
    end = 0
    with replacing(path) as file:
        for tensor in tensors:
            place = places[tensor.name]
            padding = bytes(place.offset - end)
            file.write(padding)
            digest.update(padding)
            written = 0
            for block in tensor.blocks():
                file.write(block)
                digest.update(block)
                written += len(block)
            if written != place.length:
                raise ValueError(f"{tensor.name}: {written} bytes written, {place.length} expected")
            end = place.offset + place.length
    return FileRecord(bytes=end, sha256=digest.hexdigest())


def hold(graph: ir.Graph, tensors: Sequence[Values]) -> None:
    """Put tensors into the graph itself: for one that is run and not written."""
    for tensor in tensors:
        proto = onnx.TensorProto(
            name=tensor.name,
            data_type=tensor.dtype.value,
            dims=tensor.shape,
            raw_data=b"".join(bytes(block) for block in tensor.blocks()),
        )
        graph.initializers[tensor.name].const_value = ir.serde.deserialize_tensor(proto)


def bind_weights(graph: ir.Graph, tensors: Sequence[Values], location: str) -> None:
    """Point the graph's initialisers at a weights file.

    Args:
        graph: has a registered initialiser for each tensor that it needs.
        tensors: the same, in the same order, as were written; the graph may do without some.
        location: the file, relative to the folder of the graph.

    Raises:
        RuntimeError: an initialiser is left without values.
    """
    places = lay_out(tensors)
    for tensor in tensors:
        if tensor.name not in graph.initializers:
            continue
        place = places[tensor.name]
        graph.initializers[tensor.name].const_value = ir.ExternalTensor(
            location,
            place.offset,
            place.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
            base_dir="",
        )
    empty = [name for name, value in graph.initializers.items() if value.const_value is None]
    if empty:
        raise RuntimeError(f"{graph.name}: initialisers without values: {empty[:5]}")
