"""Time two ways of doing the same work in turn, A B A B, so that a drifting machine hits both."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One comparison; times in milliseconds, medians."""

    name: str
    ours_ms: float
    torch_ms: float
    ratios: tuple[float, ...]
    """torch / ours of each turn: above 1 means that ours is faster."""

    @property
    def ratio(self) -> float:
        """Median of the turns' ratios."""
        return median(self.ratios)


def time_pair(name: str, ours: Work, theirs: Work, *, turns: int = 7) -> Pair:
    """Run both once unmeasured, then in turn."""
    ours(), theirs()
    samples = [(_milliseconds(ours), _milliseconds(theirs)) for _ in range(turns)]
    return Pair(
        name=name,
        ours_ms=median(sample[0] for sample in samples),
        torch_ms=median(sample[1] for sample in samples),
        ratios=tuple(theirs_ms / ours_ms for ours_ms, theirs_ms in samples),
    )


def _milliseconds(work: Work) -> float:
    start = perf_counter()
    work()
    return 1000 * (perf_counter() - start)
