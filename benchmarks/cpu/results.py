"""`benchmarks/cpu/results.json`, and what its figures are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..record import merge_into

RESULTS = Path(__file__).with_name("results.json")


def merge_results(found: Mapping[str, Any]) -> None:
    """Write results over those that the scripts of this folder measured before.

    Raises:
        KimiVLError: the file cannot be written.
    """
    merge_into(RESULTS, found)


def ratio(pairs: Sequence[Mapping[str, float]]) -> float:
    """Give the median of the pairs' `theirs_s` by `ours_s`: above 1 means that ours is faster."""
    return median(pair["theirs_s"] / pair["ours_s"] for pair in pairs)
