"""Files of results that several scripts write: each keeps what others measured."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engines.measure.machine import cpu_name, describe_machine
from runtime.files import write_bytes


def merge_into(path: Path, found: Mapping[str, Any]) -> None:
    """Write results over those in a file, which may be missing.

    Args:
        path: JSON.
        found: mappings are merged key by key, at every depth; all else takes the old one's place.

    Raises:
        KimiVLError: the file cannot be written.
    """
    old = json.loads(path.read_text()) if path.exists() else {}
    write_bytes(path, json.dumps(_merged(old, found), indent=1).encode() + b"\n")


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(before, value)
        else:
            merged[key] = value
    return merged


def conditions(packages: Sequence[str], *, threads: int) -> dict[str, Any]:
    """Tell what a part of the results was measured with, since parts are measured apart.

    Args:
        packages: whose versions are told.
        threads: that the work was given.
    """
    versions = {name: version(name) for name in packages}
    return {
        "cpu": cpu_name(),
        "kernels": describe_machine()["kernels"],
        "threads": threads,
        "versions": {"python": platform.python_version(), **versions},
    }
