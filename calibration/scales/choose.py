"""From what was observed to the scales of one graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.quantised.codes import LARGEST, round_to
from export.quantised.factor import Factor
from export.quantised.matrix import (
    Scales,
    group_maxima,
    grouped,
    rounded,
    scales_for,
    storable,
    two_level_scales,
)
from export.quantised.places import Place
from export.quantised.scales_file import GraphScales
from export.quantised.storage import quantised_places
from export.recipe.recipe import ActivationFormat, PartRecipe, Recipe, WeightFormat

from .balance import Link, aware_factors, links, smooth_factors, wants_balance
from .observe import Histogram, Observation

_PERCENTILE = 0.9999
_CLIP_STEPS = 10
_SMALLEST_CLIP = 0.6

Observations = Mapping[str, Observation]


@dataclass(kw_only=True)
class Chooser:
    """Chooses the scales of one graph's parameters, one after the other."""

    module: nn.Module
    """Filled with the checkpoint's values, fp32."""
    recipe: Recipe
    base: torch.dtype
    observations: Observations
    min_expert_tokens: int
    """Experts with fewer rows are measured by those of the whole layer."""
    factors: dict[str, Factor] = field(default_factory=dict)

    def choose(self) -> GraphScales:
        """Balance first, then give every quantised parameter its scales."""
        found = quantised_places(self.module, self.recipe)
        parts = {place.parameter: part for place, part in found}
        for link in links(self.module):
            self._balance(link, parts)
        weights, inputs = {}, {}
        for place, part in found:
            weights[place.parameter] = self._weight_scales(place, part)
            if part.activations is not None and place.reads_with == place.parameter:
                scale = self._input_scale(place, part.activations)
                if scale is not None:
                    inputs[place.parameter] = scale
        return GraphScales(weights=weights, inputs=inputs, factors=self.factors)

    def _balance(self, link: Link, parts: Mapping[str, PartRecipe]) -> None:
        takers = [name for name in link.takers if name in parts]
        part = wants_balance([parts[name] for name in takers])
        if part is None:
            return
        weights = [self._value(name) for name in takers]
        factor = self._link_factors(link, part, weights, [parts[name].weights for name in takers])
        for name, over in link.givers.items():
            self.factors[name] = self._factor(name).with_outputs(over(1.0 / factor))
        for name in link.takers:
            self.factors[name] = self._factor(name).with_inputs(factor[..., None])

    def _link_factors(
        self, link: Link, part: PartRecipe, weights: list[Tensor], forms: list[WeightFormat]
    ) -> Tensor:
        seen = self.observations[link.port]
        if link.is_per_expert:
            squares, _ = seen.expert_mean_squares(self.min_expert_tokens)
            largest = squares.sqrt()  # of an expert's own rows there is no maximum, only a mean
        else:
            if seen.largest is None:
                raise RuntimeError(f"{link.port}: nothing was observed")
            squares, largest = seen.mean_squares, seen.largest
        if part.balance == "smooth":
            return smooth_factors(largest, weights, part.strength)

        def loss(factor: Tensor) -> float:
            over, costs = factor[..., None], (squares / factor.square())[..., None]
            return sum(
                self._loss(weight, over, form, costs)
                for weight, form in zip(weights, forms, strict=True)
            )

        return aware_factors(squares, loss)

    def _loss(self, weight: Tensor, over: Tensor, form: WeightFormat, costs: Tensor) -> float:
        """What rounding a weight times `over` loses, with the mean squares of its inputs as costs.

        One matrix of a stack at a time: the temporaries are as large as the weight.
        """
        if weight.dim() == 3:
            shape = (len(weight), *over.shape[-2:])
            stack = zip(weight, over.expand(shape), costs.expand(shape), strict=True)
            return sum(self._loss(one, its, form, its_costs) for one, its, its_costs in stack)
        balanced = weight * over
        lost = rounded(balanced, scales_for(balanced, form, self.base), form) - balanced
        return float((lost.square() * costs).sum())

    def _weight_scales(self, place: Place, part: PartRecipe) -> Scales:
        weight, form = self._value(place.parameter), part.weights
        if not part.clip or place.port is None:
            return scales_for(weight, form, self.base)
        importance = self._importance(place, weight)
        if weight.dim() == 2 or form.codes == "nvfp4":
            return clipped_scales(weight, form, self.base, importance)
        matrices = zip(weight, importance, strict=True)  # one at a time: the search takes memory
        found = [clipped_scales(one, form, self.base, cost).step for one, cost in matrices]
        return Scales(step=torch.stack(found))

    def _importance(self, place: Place, weight: Tensor) -> Tensor:
        """Mean square of what meets each input of a weight, (..., K, 1), after balancing."""
        if place.port is None:
            raise RuntimeError(f"{place.parameter}: its inputs are not observed")
        seen = self.observations[place.port]
        if weight.dim() == 3:
            squares, _ = seen.expert_mean_squares(self.min_expert_tokens)
        else:
            squares = seen.mean_squares
        factor = self._factor(place.parameter).inputs
        column = squares[..., None]
        return column if factor is None else column / factor.square()

    def _input_scale(self, place: Place, form: ActivationFormat) -> Tensor | None:
        is_dynamic = form.scale == "dynamic" and form.codes != "nvfp4"
        if is_dynamic or place.port is None:
            return None
        seen = self.observations[place.port]
        factor = self._factor(place.parameter).inputs
        if factor is None:
            top = _top(seen.histogram, form)
        else:  # (K, 1), or (E, K, 1): the strictest of all experts
            strictest = factor[..., 0].reshape(-1, factor.shape[-2]).amin(dim=0)
            top = float((_largest(seen) / strictest).max())
        if form.codes == "nvfp4":
            whole = two_level_scales(torch.tensor(top)).whole
            assert whole is not None
            return whole
        return storable(torch.tensor(top / LARGEST[form.codes]), self.base)

    def _value(self, name: str) -> Tensor:
        """A parameter after what balancing has done to it so far."""
        return self._factor(name).applied(self.module.get_parameter(name).detach())

    def _factor(self, name: str) -> Factor:
        return self.factors.get(name, Factor())


def clipped_scales(
    weight: Tensor, form: WeightFormat, base: torch.dtype, importance: Tensor
) -> Scales:
    """Search each group's scale between 60 % and all of what holds its largest weight.

    Args:
        weight: (..., K, N) fp32.
        form: codes and group.
        base: type of scales.
        importance: (..., K, 1), mean square of the inputs: what an error of each weight costs.
    """
    full = scales_for(weight, form, base)
    best, chosen = None, full.step.float()
    largest = group_maxima(weight, form)
    weighing = grouped(importance.expand(weight.shape), form)
    for step in range(_CLIP_STEPS + 1):
        share = 1.0 - (1.0 - _SMALLEST_CLIP) * step / _CLIP_STEPS
        scales = _shrunk(full, largest * share, form, base)
        lost = grouped(rounded(weight, scales, form) - weight, form)
        cost = (lost.square() * weighing).sum(dim=-2)
        if best is None:
            best = cost
            continue
        is_better = cost < best
        best = torch.where(is_better, cost, best)
        chosen = torch.where(is_better, scales.step.float(), chosen)
    return Scales(step=chosen.to(full.step.dtype), whole=full.whole)


def _shrunk(full: Scales, largest: Tensor, form: WeightFormat, base: torch.dtype) -> Scales:
    if full.whole is None:
        return Scales(step=storable(largest / LARGEST[form.codes], base))
    step = round_to(largest / LARGEST[form.codes] / full.whole, "fp8").to(full.step.dtype)
    return Scales(step=step, whole=full.whole)


def _largest(seen: Observation) -> Tensor:
    if seen.largest is None:
        raise RuntimeError("nothing was observed")
    return seen.largest


def _top(histogram: Histogram, form: ActivationFormat) -> float:
    """The largest size that a static format should hold."""
    if form.observer == "max" or form.codes == "nvfp4" or histogram.top == 0.0:
        return histogram.largest
    if form.observer == "percentile":
        return min(histogram.percentile(_PERCENTILE), histogram.largest)
    centres, counts = histogram.centres(), histogram.counts
    tries = [histogram.largest * step / 50 for step in range(5, 51)]

    def loss(top: float) -> float:
        step = top / LARGEST[form.codes]
        lost = round_to(centres / step, form.codes) * step - centres
        return float((counts * lost.double().square()).sum())

    return min(tries, key=loss)
