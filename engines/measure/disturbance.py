"""How much of the machine others took while something was timed.

Source: proc(5), `/proc/stat`: hundredths of seconds of all processors since the start, for the
whole machine, also where it is read in a container.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6)
"""Columns: user, nice, system, irq, softirq. Guests are in user; idle and iowait are not work."""
_STOLEN = 7

ALLOWED_CORES = 0.1
"""Of others, on average over what was timed."""
_RESOLUTION_S = 0.05
"""What others took is not told from rounding below this."""


class CpuTime(NamedTuple):
    """Seconds since some moment."""

    wall: float
    busy: float
    """Of all processors, whoever used them."""
    own: float
    stolen: float
    """When the machine under this virtual one ran something else."""


def cpu_time() -> CpuTime:
    """Read all clocks now."""
    ticks = _STAT.read_text().splitlines()[0].split()[1:]
    per_s = os.sysconf("SC_CLK_TCK")
    mine = os.times()
    return CpuTime(
        wall=perf_counter(),
        busy=sum(int(ticks[place]) for place in _BUSY) / per_s,
        own=mine.user + mine.system,
        stolen=int(ticks[_STOLEN]) / per_s,
    )


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What others took while something was timed."""

    wall_s: float = 0.0
    others_s: float = 0.0
    """Of processor time."""
    stolen_s: float = 0.0

    @classmethod
    def between(cls, before: CpuTime, after: CpuTime) -> "Disturbance":
        """Compare two readings of the clocks."""
        spent = CpuTime(*(end - start for start, end in zip(before, after, strict=True)))
        others = max(0.0, spent.busy - spent.own)
        return cls(wall_s=spent.wall, others_s=others, stolen_s=spent.stolen)

    def plus(self, other: "Disturbance") -> "Disturbance":
        """Add up two times."""
        return Disturbance(
            wall_s=self.wall_s + other.wall_s,
            others_s=self.others_s + other.others_s,
            stolen_s=self.stolen_s + other.stolen_s,
        )

    @property
    def others_cores(self) -> float:
        """Processors that others kept busy, on average."""
        return self.others_s / self.wall_s if self.wall_s else 0.0

    @property
    def stolen_cores(self) -> float:
        """Processors that the machine underneath took away, on average."""
        return self.stolen_s / self.wall_s if self.wall_s else 0.0

    @property
    def is_noticeable(self) -> bool:
        """Whether figures may have suffered."""
        taken = self.others_s + self.stolen_s
        return taken > max(_RESOLUTION_S, ALLOWED_CORES * self.wall_s)

    def fields(self) -> dict[str, Any]:
        """Name the figures."""
        return {
            "wall_s": self.wall_s,
            "others_cores": self.others_cores,
            "stolen_cores": self.stolen_cores,
            "is_noticeable": self.is_noticeable,
        }


class DisturbanceWatch:
    """Adds up what others take inside its `with watch.timed()` blocks."""

    def __init__(self) -> None:
        self.total = Disturbance()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Compare the clocks before and after a block."""
        before = cpu_time()
        yield
        self.total = self.total.plus(Disturbance.between(before, cpu_time()))
