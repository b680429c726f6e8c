"""What a recipe changes in one graph: weights, outputs, choice of experts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from export.modules.decoder import Taps
from export.quantised.scales_file import GraphScales
from export.quantised.storage import meaning, quantised_places
from export.recipe.recipe import Recipe
from export.sources import Source, fill_parts

from ..digits import six_digits


@dataclass(kw_only=True)
class Comparison:
    """Sums over the judged samples."""

    weights: dict[str, float] = field(default_factory=dict)
    """|Q(W) - W| / |W| of each quantised parameter."""
    lost: float = 0.0
    total: float = 0.0
    same_experts: int = 0
    num_experts: int = 0
    flipped_margins: list[Tensor] = field(default_factory=list)
    is_finite: bool = True

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Take one item's outputs in."""
        self.lost += float((found - wanted).double().square().sum())
        self.total += float(wanted.double().square().sum())
        self.is_finite &= bool(torch.isfinite(found).all())

    def add_taps(self, found: Taps | None, wanted: Taps | None) -> None:
        """Take one item's choice of experts in."""
        if found is None or wanted is None:
            return
        same = (found.experts[..., None] == wanted.experts[..., None, :]).any(dim=-1)
        self.same_experts += int(same.sum())
        self.num_experts += same.numel()
        self.flipped_margins.append(wanted.margin[~same.all(dim=-1)])

    def figures(self) -> dict[str, Any]:
        """`error` (root of the relative square error), `weights`, perhaps `experts`."""
        found: dict[str, Any] = {"is_finite": self.is_finite, "weights": self.weights}
        if self.total:
            found["error"] = six_digits((self.lost / self.total) ** 0.5)
        if self.num_experts:
            margins = torch.cat(self.flipped_margins)
            found["experts"] = {
                "agreement": six_digits(self.same_experts / self.num_experts),
                "flipped_tokens": len(margins),
                "flip_margin": six_digits(float(margins.mean())) if len(margins) else None,
            }
        return found


def weight_errors(
    module: nn.Module, sources: Sequence[Source], recipe: Recipe, scales: GraphScales
) -> dict[str, float]:
    """Fill a module with what a recipe makes of its parameters; returns each one's error."""
    forms = {place.parameter: part.weights for place, part in quantised_places(module, recipe)}
    errors: dict[str, float] = {}
    for source in sources:
        form = forms.get(source.name)
        filled = _Filled(meaning(source, scales, form))
        with torch.no_grad():
            fill_parts(module.get_parameter(source.name), filled)
        if form is not None:
            errors[source.name] = six_digits((filled.lost / (filled.total or 1.0)) ** 0.5)
    return errors


class _Filled:
    """Yields what matrices become, and sums up how far that is from what they were."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs
        self.lost = 0.0
        self.total = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        for before, after in self._pairs:
            self.lost += float((after - before).double().square().sum())
            self.total += float(before.double().square().sum())
            yield after
