"""`benchmarks/cpu/results.json`, which several scripts write: each keeps what others measured."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from engines.measure.machine import cpu_name, describe_machine
from runtime.files import write_bytes

RESULTS = Path(__file__).with_name("results.json")


def merge_results(found: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Write results over those in a file, which may be missing.

    Args:
        found: mappings are merged key by key, at every depth; all else takes the old one's place.
        path: JSON.

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


def ratio(pairs: Sequence[Mapping[str, float]]) -> float:
    """Give the median of the pairs' `theirs_s` by `ours_s`: above 1 means that ours is faster."""
    return median(pair["theirs_s"] / pair["ours_s"] for pair in pairs)


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
