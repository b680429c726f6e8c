"""Which file holds which tensor: the index of a sharded checkpoint, or the one file itself.

Does not know: which tensors a model has.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import INDEX_FILE, SINGLE_FILE, object_from_json
from .header import ShardHeader, read_header


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the tensors lie, and the headers of the files that were opened."""

    shard_of: dict[str, str]
    """File name by tensor name."""
    headers: dict[str, ShardHeader]
    """By file name; a file that could not be used is absent."""
    index_sha256: str | None
    """None for a checkpoint in one file."""


def read_placement(folder: Path, needed: Collection[str], problems: list[str]) -> Placement | None:
    """Read the index and the headers of the shards that hold needed tensors.

    Args:
        folder: the checkpoint folder.
        needed: tensor names; shards without any of them may be absent.
        problems: what is wrong is appended here.

    Returns:
        The placement, or None when not even the names of the tensors are known.
    """
    index_path = folder / INDEX_FILE
    if not index_path.exists():
        return _read_single(folder, problems)
    try:
        raw = index_path.read_bytes()
        shard_of = _shards_from_index(object_from_json(raw))
    except OSError as error:
        problems.append(f"{INDEX_FILE} cannot be read: {error.strerror}")
        return None
    except ValueError as error:
        problems.append(f"{INDEX_FILE} is not usable: {error}")
        return None
    shards = set(shard_of.values())
    if SINGLE_FILE not in shards and (folder / SINGLE_FILE).exists():
        problems.append(
            f"{SINGLE_FILE} lies beside an index that does not name it; remove one of them"
        )
    wanted = {shard_of[name] for name in needed if name in shard_of}
    headers: dict[str, ShardHeader] = {}
    for shard in sorted(shards):
        if not _is_plain_name(shard):
            problems.append(f"{INDEX_FILE} names {shard!r}, which is not a plain file name")
        elif shard in wanted:
            header = read_header(folder / shard, problems)
            if header is not None:
                headers[shard] = header
    return Placement(
        shard_of=shard_of, headers=headers, index_sha256=hashlib.sha256(raw).hexdigest()
    )


def _read_single(folder: Path, problems: list[str]) -> Placement | None:
    if not (folder / SINGLE_FILE).exists():
        problems.append(f"neither {INDEX_FILE} nor {SINGLE_FILE} is there")
        return None
    header = read_header(folder / SINGLE_FILE, problems)
    if header is None:
        return None
    return Placement(
        shard_of=dict.fromkeys(header.entries, SINGLE_FILE),
        headers={SINGLE_FILE: header},
        index_sha256=None,
    )


def _shards_from_index(fields: dict[str, Any]) -> dict[str, str]:
    shard_of = fields.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError("weight_map is missing or empty")
    wrong = [name for name, shard in shard_of.items() if not isinstance(shard, str)]
    if wrong:
        raise ValueError(f"weight_map gives no file name for {wrong[0]}")
    return shard_of


def _is_plain_name(name: str) -> bool:
    """Tell whether a name stays in its folder; both kinds of separators and drives are refused."""
    return name not in {"", ".", ".."} and not any(sign in name for sign in "/\\:\0")
