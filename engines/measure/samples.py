"""What many samples come to: mean, deviation, percentiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Samples of one thing, in the unit of the samples."""

    mean: float
    deviation: float
    """Of the sample (n - 1), as llama-bench has it; 0 for one sample."""
    percentiles: dict[str, float]
    """`p50`, `p90`, `p99`, between neighbours by their distance."""

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Reduce samples, at least one."""
        found = np.percentile(samples, PERCENTILES)
        return cls(
            mean=fmean(samples),
            deviation=stdev(samples) if len(samples) > 1 else 0.0,
            percentiles={
                f"p{share}": float(one) for share, one in zip(PERCENTILES, found, strict=True)
            },
        )

    def fields(self) -> dict[str, Any]:
        """Name the figures, flat."""
        return {"mean": self.mean, "deviation": self.deviation, **self.percentiles}
