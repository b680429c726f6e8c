"""What a lowering for TensorRT is asked for."""

from dataclasses import dataclass
from typing import Literal

ExpertsForm = Literal["plugin", "gather", "dense", "conditional", "layer"]
"""How chosen experts are computed: by our kernels; each token's own matrices gathered, for few
tokens; all experts for all tokens, for many; whichever of these two moves fewer bytes; by
TensorRT's own layer, on the few devices that have it."""

WeightsPlace = Literal["external", "embedded"]
"""`external`: inputs of the network, so that one plan serves all layers of a kind; `embedded`:
constants of the plan."""

CacheReads = Literal["window", "capacity"]
"""What attention reads of the cache: its first rows, as many as the input `window` is long, or all
rows there are."""


@dataclass(frozen=True, kw_only=True)
class LoweringOptions:
    """The choices that differ between engines of one artifact."""

    max_tokens: int
    """Rows of the cache: its capacity for one slot."""
    sms: tuple[int, ...]
    """Compute capabilities of the engine, as in (89, 120)."""
    experts: ExpertsForm = "plugin"
    weights: WeightsPlace = "external"
    cache_reads: CacheReads = "window"
