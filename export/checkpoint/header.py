"""The header of one safetensors file, checked against the size of the file it stands in.

    8 bytes: N │ N bytes of JSON: name → dtype, shape, [begin, end) │ data, to the end of the file

Does not know: which tensors a model has, and no tensor values.

Source: the format description of safetensors.
"""

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from .files import object_from_json

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets."""
LFS_POINTER_START = b"version "

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True, kw_only=True)
class StoredEntry:
    """One tensor of a header."""

    dtype: str
    """As the file spells it: `BF16`, `F32`, …"""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the data."""
    end: int


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What one file says about itself."""

    size_bytes: int
    data_start: int
    """Bytes before the data: the length field and the header."""
    sha256: str
    """Over the length field and the header."""
    entries: dict[str, StoredEntry]


def read_header(path: Path, problems: list[str]) -> ShardHeader | None:
    """Read and check one header; links are followed.

    Args:
        path: the safetensors file.
        problems: what is wrong is appended here.

    Returns:
        The header, or None when the file does not tell its tensors at all.
    """
    shard = path.name
    if not path.is_file():
        problems.append(f"shard {shard} is missing")
        return None
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            refusal = _refuse_length(start, length, size_bytes)
            if refusal:
                problems.append(f"{shard} {refusal}")
                return None
            raw = stream.read(length)
    except OSError as error:
        problems.append(f"{shard} cannot be read: {error.strerror}")
        return None
    entries = _parse_entries(shard, raw, problems)
    if entries is None:
        return None
    _check_layout(shard, entries, size_bytes - 8 - length, problems)
    return ShardHeader(
        size_bytes=size_bytes,
        data_start=8 + length,
        sha256=hashlib.sha256(start + raw).hexdigest(),
        entries=entries,
    )


def _refuse_length(start: bytes, length: int, size_bytes: int) -> str | None:
    if start == LFS_POINTER_START:
        return "is a Git LFS pointer, not the data; fetch it with `git lfs pull`"
    if len(start) < 8:
        return f"has {size_bytes} bytes, too few for a safetensors file"
    if length > size_bytes - 8:
        return f"claims a header of {length} bytes, but only {size_bytes - 8} bytes follow"
    if length > MAX_HEADER_BYTES:
        return f"claims a header of {length} bytes, the limit is {MAX_HEADER_BYTES}"
    return None


def _parse_entries(shard: str, raw: bytes, problems: list[str]) -> dict[str, StoredEntry] | None:
    try:
        fields = object_from_json(raw)
    except ValueError as error:
        problems.append(f"the header of {shard} is not usable: {error}")
        return None
    fields.pop("__metadata__", None)
    entries: dict[str, StoredEntry] = {}
    for name, value in fields.items():
        entry = _parse_entry(value)
        if entry is None:
            problems.append(f"the header of {shard} does not describe {name} properly")
            return None
        entries[name] = entry
    return entries


def _parse_entry(value: Any) -> StoredEntry | None:  # noqa: ANN401  # any JSON value
    if not isinstance(value, dict):
        return None
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _is_counts(shape) or not _is_counts(offsets):
        return None
    if len(offsets) != 2:
        return None
    return StoredEntry(dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _is_counts(value: Any) -> TypeGuard[list[int]]:  # noqa: ANN401  # any JSON value
    # `type` and not isinstance: true and false are instances of int.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(
    shard: str, entries: dict[str, StoredEntry], data_bytes: int, problems: list[str]
) -> None:
    """Tensors must cover the data without overlap, hole or rest, each with its exact size."""
    outside = [name for name, entry in entries.items() if entry.end > data_bytes]
    if outside:
        problems.append(
            f"{shard} is truncated or its header lies: {outside[0]} ends at byte "
            f"{entries[outside[0]].end} of {data_bytes} ({len(outside)} tensors reach outside)"
        )
    covered, previous = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < covered:
            problems.append(f"{name} overlaps {previous} in {shard}")
        elif entry.begin > covered:
            problems.append(f"{entry.begin - covered} unused bytes before {name} in {shard}")
        if entry.end >= covered:
            covered, previous = entry.end, name
        wanted = prod(entry.shape) * ITEM_BYTES.get(entry.dtype, 0)
        if entry.dtype in ITEM_BYTES and wanted != entry.end - entry.begin:
            problems.append(
                f"{name} in {shard} has {entry.end - entry.begin} bytes, but {entry.dtype} "
                f"{list(entry.shape)} needs {wanted}"
            )
    if covered < data_bytes:
        problems.append(f"{data_bytes - covered} unused bytes at the end of {shard}")
