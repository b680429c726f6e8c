"""Checkpoints laid out by hand, byte by byte, so that each can be wrong in one way."""

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from export.checkpoint.expected import expected_tensors
from export.synthetic.configs import TINY_CONFIG
from runtime.config import KimiVLConfig

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
ROUTER = "language_model.model.layers.1.mlp.gate.weight"
NORM = "language_model.model.norm.weight"
ITEM_BYTES = {"I64": 8, "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1}


def tiny_config() -> KimiVLConfig:
    return KimiVLConfig.from_fields(TINY_CONFIG)


def entry(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]}


def pack(header: Mapping[str, dict[str, Any]]) -> int:
    """Set the offsets so that the tensors follow each other; returns the bytes of the data."""
    end = 0
    for value in header.values():
        begin, end = end, end + prod(value["shape"]) * ITEM_BYTES[value["dtype"]]
        value["data_offsets"] = [begin, end]
    return end


def shard_bytes(raw: bytes, data: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


class Draft:
    """A right checkpoint of two shards, to be altered before `write`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = dict(TINY_CONFIG)
        self.headers: dict[str, dict[str, Any]] = {FIRST: {}, SECOND: {}}
        for name, shape in expected_tensors(tiny_config()).items():
            shard = SECOND if "layers.2." in name or name == NORM else FIRST
            self.headers[shard][name] = entry("BF16", shape)
        self.data_bytes = {shard: pack(header) for shard, header in self.headers.items()}
        self.weight_map: dict[str, Any] = {
            name: shard for shard, header in self.headers.items() for name in header
        }

    def repack(self) -> None:
        self.data_bytes = {shard: pack(header) for shard, header in self.headers.items()}

    def write(self) -> Path:
        (self.folder / "config.json").write_text(json.dumps(self.config))
        index = {"metadata": {"total_size": 1}, "weight_map": self.weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for shard, header in self.headers.items():
            raw = json.dumps(header).encode()
            data = bytes(self.data_bytes[shard])
            (self.folder / shard).write_bytes(shard_bytes(raw, data))
        return self.folder

    def write_single(self, name: str = "model.safetensors") -> Path:
        (self.folder / "config.json").write_text(json.dumps(self.config))
        header = {**self.headers[FIRST], **self.headers[SECOND]}
        data = bytes(pack(header))
        (self.folder / name).write_bytes(shard_bytes(json.dumps(header).encode(), data))
        return self.folder
