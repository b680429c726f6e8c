"""Tensors in safetensors files: everything checked at open, then read one at a time.

Does not know: where the folder came from, nor the model's config; it compares with given shapes.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runtime.errors import CheckpointError, describe_problems

from .expected import IGNORED_SUFFIX
from .header import ShardHeader, StoredEntry
from .index import Placement, read_placement

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SAMPLES_PER_SHARD = 64
SAMPLE_BYTES = 4096


class StoredTensors:
    """The tensors of one folder; no file is held open and no value is kept."""

    def __init__(self, folder: Path, placement: Placement) -> None:
        self._folder = folder
        self._placement = placement

    @classmethod
    def open(
        cls, folder: Path, expected: Mapping[str, tuple[int, ...]], needed: Collection[str]
    ) -> "StoredTensors":
        """Check every header against the expected tensors.

        Args:
            folder: the checkpoint folder.
            expected: shape of every tensor of the model.
            needed: those of them that will be read; shards without one may be absent.

        Raises:
            CheckpointError: all that is wrong, in one line.
        """
        problems: list[str] = []
        placement = read_placement(folder, needed, problems)
        if placement is not None:
            _check_names(placement, expected, needed, problems)
            for shard, header in placement.headers.items():
                _check_entries(shard, header, expected, placement, problems)
        if placement is not None and not problems:
            _check_library_agrees(folder, placement, problems)
        if problems or placement is None:
            raise CheckpointError(describe_problems(str(folder), problems))
        return cls(folder, placement)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is stored in."""
        return TORCH_DTYPES[self._entry(name).dtype]

    def tensor(self, name: str) -> torch.Tensor:
        """Map one tensor into memory; its pages are read from the file when they are touched.

        Raises:
            CheckpointError: the file changed or vanished since it was checked.
        """
        shard = self._placement.shard_of[name]
        try:
            with safe_open(self._folder / shard, framework="pt") as stream:
                tensor: torch.Tensor = stream.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._folder / shard}: {name} cannot be read: {error}; did the file change?"
            ) from error
        return tensor

    def identity(self) -> dict[str, Any]:
        """Fingerprint the files without reading them: headers whole, values by samples.

        Training on changes all samples, so another release of the same shapes is told apart; a
        few altered values between the samples are not.
        """
        return {
            "kind": "safetensors",
            "index_sha256": self._placement.index_sha256,
            "shards": [
                {
                    "name": shard,
                    "size_bytes": header.size_bytes,
                    "header_sha256": header.sha256,
                    "sample_sha256": _hash_samples(self._folder / shard, header),
                }
                for shard, header in sorted(self._placement.headers.items())
            ],
        }

    def _entry(self, name: str) -> StoredEntry:
        return self._placement.headers[self._placement.shard_of[name]].entries[name]


def _hash_samples(path: Path, header: ShardHeader) -> str:
    digest = hashlib.sha256()
    step = max((header.size_bytes - header.data_start) // SAMPLES_PER_SHARD, SAMPLE_BYTES)
    try:
        with path.open("rb") as stream:
            for position in range(header.data_start, header.size_bytes, step):
                stream.seek(position)
                digest.update(stream.read(SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _check_names(
    placement: Placement,
    expected: Mapping[str, tuple[int, ...]],
    needed: Collection[str],
    problems: list[str],
) -> None:
    for name in needed:
        if name not in placement.shard_of:
            problems.append(f"{name} is missing")
    for name, shard in placement.shard_of.items():
        if name not in expected and not name.endswith(IGNORED_SUFFIX):
            problems.append(f"{name} is not a tensor of this model")
        header = placement.headers.get(shard)
        if header is not None and name not in header.entries:
            problems.append(f"the index puts {name} in {shard}, which does not hold it")


def _check_entries(
    shard: str,
    header: ShardHeader,
    expected: Mapping[str, tuple[int, ...]],
    placement: Placement,
    problems: list[str],
) -> None:
    for name, entry in header.entries.items():
        if name.endswith(IGNORED_SUFFIX):
            continue
        if placement.shard_of.get(name) != shard:
            problems.append(f"{shard} holds {name}, which the index does not put there")
        if name not in expected:
            continue
        if entry.shape != expected[name]:
            problems.append(
                f"{name} has shape {list(entry.shape)}, expected {list(expected[name])}"
            )
        if entry.dtype not in TORCH_DTYPES:
            problems.append(
                f"{name} has dtype {entry.dtype}, expected one of {', '.join(TORCH_DTYPES)}"
            )


def _check_library_agrees(folder: Path, placement: Placement, problems: list[str]) -> None:
    for shard in placement.headers:
        try:
            with safe_open(folder / shard, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            problems.append(f"{shard} is refused by the safetensors library: {error}")
