"""What meets each matrix: gathered by hooks while samples run through a module.

Every row of channels counts as text or as image; an expert's rows are those routed to it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.modules.decoder import Port
from export.quantised.places import places

_BINS = 2048


class Histogram:
    """Sizes of numbers in equal bins from zero; the range doubles as needed."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.top = 0.0
        self.largest = 0.0

    def add(self, values: Tensor) -> None:
        """Count the magnitudes of values."""
        sizes = values.abs().flatten().float()
        largest = float(sizes.max()) if sizes.numel() else 0.0
        self.largest = max(self.largest, largest)
        if largest == 0.0:
            self.counts[0] += sizes.numel()
            return
        if self.top == 0.0:
            self.top = 2.0 ** np.ceil(np.log2(largest))
        while self.top < largest:
            pairs = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts = torch.cat([pairs, torch.zeros(_BINS // 2, dtype=torch.float64)])
            self.top *= 2
        self.counts += torch.histc(sizes, _BINS, 0.0, self.top).double()

    def percentile(self, share: float) -> float:
        """The size that this share of the numbers stays below or at; upper border of its bin."""
        reached = self.counts.cumsum(0) >= share * self.counts.sum()
        return float(int(reached.int().argmax()) + 1) * self.top / _BINS

    def centres(self) -> Tensor:
        """Middles of the bins."""
        return (torch.arange(_BINS) + 0.5) * (self.top / _BINS)


@dataclass(kw_only=True)
class Observation:
    """What met the parameters behind one port."""

    histogram: Histogram = field(default_factory=Histogram)
    largest: Tensor | None = None
    """(C,) largest magnitude of each channel."""
    squares: Tensor | None = None
    """(C,) fp64 sum of squares of each channel."""
    rows: int = 0
    expert_squares: Tensor | None = None
    """(E, C) fp64, of the rows routed to each expert."""
    expert_rows: Tensor | None = None
    """(E,) int64."""

    def add(self, rows: Tensor) -> None:
        """Take rows (N, C) in."""
        largest = rows.abs().amax(dim=0)
        squares = rows.double().square().sum(dim=0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.squares = squares if self.squares is None else self.squares + squares
        self.rows += len(rows)
        self.histogram.add(rows)

    def add_routed(self, rows: Tensor, experts: Tensor, num_experts: int) -> None:
        """Take rows (N, K, C) and their experts (N, K) in."""
        flat, chosen = rows.reshape(-1, rows.shape[-1]), experts.flatten()
        if self.expert_squares is None or self.expert_rows is None:
            self.expert_squares = torch.zeros(num_experts, flat.shape[1], dtype=torch.float64)
            self.expert_rows = torch.zeros(num_experts, dtype=torch.int64)
        self.expert_squares.index_add_(0, chosen, flat.double().square())
        self.expert_rows += torch.bincount(chosen, minlength=num_experts)

    @property
    def mean_squares(self) -> Tensor:
        """(C,) fp32."""
        if self.squares is None:
            raise RuntimeError("nothing was observed")
        return (self.squares / max(1, self.rows)).float()

    def expert_mean_squares(self, minimum: int) -> tuple[Tensor, Tensor]:
        """Give (E, C) fp32 and which experts (E,) had fewer than so many rows.

        Those get the mean over all rows of the layer, routed anywhere.
        """
        if self.expert_squares is None or self.expert_rows is None:
            raise RuntimeError("no expert was observed")
        counts = self.expert_rows.clamp_min(1)[:, None]
        own = (self.expert_squares / counts).float()
        total = self.expert_squares.sum(dim=0) / self.expert_rows.sum().clamp_min(1)
        is_rare = self.expert_rows < minimum
        return torch.where(is_rare[:, None], total.float(), own), is_rare


class Observer:
    """Looks at all ports of a module while samples run through it."""

    def __init__(self, module: nn.Module, num_experts: int) -> None:
        self.module = module
        self.num_experts = num_experts
        ports = {place.port for place in places(module) if place.port is not None}
        self.observations = {port: Observation() for port in sorted(ports)}
        self.expert_counts = torch.zeros(2, num_experts, dtype=torch.int64)
        """(text or image, E): tokens routed to each expert."""
        self._is_image: Tensor | None = None

    @contextmanager
    def watching(self, is_image: Tensor | None) -> Iterator[None]:
        """Watch what runs inside the `with` block: one sample.

        Args:
            is_image: (N,) bool, which of its tokens are image tokens; None where none are counted.
        """
        self._is_image = is_image
        handles = [
            self.module.get_submodule(port).register_forward_pre_hook(self._hook(port))
            for port in self.observations
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def summary(self, minimum: int) -> dict[str, Any]:
        """Give counts and extremes, by port; experts' tokens by text and image.

        Args:
            minimum: experts with fewer tokens count as rare.
        """
        found: dict[str, Any] = {
            "ports": {
                port: {"rows": seen.rows, "largest": seen.histogram.largest}
                for port, seen in self.observations.items()
            }
        }
        if self.expert_counts.any():
            text, image = self.expert_counts.tolist()
            rare = int((self.expert_counts.sum(dim=0) < minimum).sum())
            found["experts"] = {"text": text, "image": image, "rare": rare}
        return found

    def _hook(self, port: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        seen = self.observations[port]

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            seen.add(x.reshape(-1, x.shape[-1]))
            if isinstance(module, Port):
                experts = inputs[1]
                rows = x if x.dim() == 3 else x[:, None].expand(-1, experts.shape[1], -1)
                seen.add_routed(rows, experts, self.num_experts)
                if x.dim() == 2:
                    self._count(experts)

        return look

    def _count(self, experts: Tensor) -> None:
        if self._is_image is None:
            raise RuntimeError("experts are counted, and is_image is None")
        for row, chosen in enumerate((experts[~self._is_image], experts[self._is_image])):
            counts = torch.bincount(chosen.flatten(), minlength=self.num_experts)
            self.expert_counts[row] += counts
