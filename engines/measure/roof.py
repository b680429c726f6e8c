"""The speed that memory allows, and how much of it a row reaches.

A decoded token reads every weight that it needs, and the cache behind it, at least once. Prompts
share what they read among their tokens and are bound by arithmetic: memory is no roof over them.
Nor is it over a model whose weights may stay in the last cache.
"""

from dataclasses import dataclass

from ..cpu.traffic import Traffic
from .bandwidth import Bandwidth
from .rows import Row


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What a run of target `cpu` is compared with."""

    traffic: Traffic
    bandwidth: Bandwidth
    """Of the same run, before and after the rows."""
    last_cache_bytes: int

    @property
    def is_memory(self) -> bool:
        """Whether what a token reads must come from memory."""
        return self.traffic.at(0) > self.last_cache_bytes

    def moved_bytes(self, row: Row) -> float | None:
        """Give what a token of a decode row reads, on average over the row."""
        if row.kind == "prompt":
            return None
        behind = row.depth + (row.tokens + 1) / 2
        return self.traffic.at(behind, batch=row.batch) / row.batch

    def tokens_per_s(self, row: Row) -> float | None:
        """Give the speed that memory allows, all slots together; None where it is no roof."""
        moved = self.moved_bytes(row)
        if moved is None or not self.is_memory:
            return None
        return self.bandwidth.median * 1e9 / moved
