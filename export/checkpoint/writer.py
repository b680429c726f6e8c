"""Write tensors as numbered safetensors shards with an index, one tensor in memory at a time.

Does not know: where the values come from. The library's own writer wants a whole shard in memory.

Source: the format description of safetensors; file names and index as the Hugging Face libraries
write them.
"""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from .files import INDEX_FILE
from .stored import TORCH_DTYPES

MAX_SHARD_BYTES = 5_000_000_000
MIN_SHARDS = 3
"""So that a small checkpoint, too, has what a reader of shards can get wrong."""
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Values(Protocol):
    """What is written."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor."""


def size_bytes(values: Values, name: str) -> int:
    """Return how many bytes a tensor takes in a file."""
    return prod(values.shape(name)) * values.dtype(name).itemsize


def write_shards(folder: Path, values: Values, names: Sequence[str]) -> None:
    """Fill `folder` with `model-0000K-of-0000N.safetensors` and their index.

    Args:
        folder: exists and holds no shards.
        values: shape, dtype and values by name.
        names: what to write, in this order from shard to shard.
    """
    sizes = {name: size_bytes(values, name) for name in names}
    shards = _split(sizes)
    weight_map: dict[str, str] = {}
    for number, members in enumerate(shards, start=1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / shard, values, members)
        weight_map |= dict.fromkeys(members, shard)
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(sizes: dict[str, int]) -> list[list[str]]:
    limit = min(MAX_SHARD_BYTES, -(-sum(sizes.values()) // MIN_SHARDS))
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not shards or filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_shard(path: Path, values: Values, names: Sequence[str]) -> None:
    # Wide types first keeps every tensor aligned, as the library's writer does.
    ordered = sorted(names, key=lambda name: -values.dtype(name).itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        begin, end = end, end + size_bytes(values, name)
        header[name] = {
            "dtype": DTYPE_NAMES[values.dtype(name)],
            "shape": values.shape(name),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("xb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for name in ordered:
            data = values.tensor(name).contiguous().flatten().view(torch.uint8)
            stream.write(data.numpy().data)
