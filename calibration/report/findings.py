"""What a calibration found, by subject: the content of `quality.json` beside recipe and gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.recipe.recipe import Part, Recipe
from runtime import names

_FIRST = (names.VISION, names.PROJECTOR, names.EMBEDDING)
_PARTS_BY_NAME: tuple[tuple[str, Part], ...] = (
    ("encoder.blocks.", "vision"),
    ("linear_", "projector"),
    ("self_attn.kv_b_proj.", "kv_b"),
    ("self_attn.", "attention"),
    ("mlp.experts.", "experts"),
    ("mlp.shared_experts.", "shared_experts"),
    ("mlp.", "dense_mlp"),
    ("lm_head", "head"),
)


@dataclass(frozen=True, kw_only=True)
class Routed:
    """Tokens that were routed to each expert of one layer."""

    text: Sequence[int]
    image: Sequence[int]

    @property
    def totals(self) -> list[int]:
        """Text and image tokens together."""
        return [text + image for text, image in zip(self.text, self.image, strict=True)]

    def num_below(self, minimum: int) -> int:
        """Count the experts with fewer tokens."""
        return sum(total < minimum for total in self.totals)


@dataclass(frozen=True, kw_only=True)
class WeightError:
    """What rounding lost in one matrix."""

    graph: str
    parameter: str
    error: float
    """|Q(W) - W| / |W|."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """One calibration, finished, with the gate's judgement."""

    quality: Mapping[str, Any]
    recipe: Recipe
    gate: Mapping[str, Any]
    """As `GateLimits.record` gives it."""
    problems: Sequence[str]
    """Why the gate refuses; empty if it does not."""
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of targets, as `price.target` gives them; empty before one was measured."""

    @property
    def graphs(self) -> dict[str, Mapping[str, Any]]:
        """All graphs, in the order in which values go through them."""
        graphs = self.quality["graphs"]
        return {name: graphs[name] for name in sorted(graphs, key=_order)}

    @property
    def price(self) -> Mapping[str, Any]:
        """Of the whole recipe, as `price.figures` gives it."""
        price: Mapping[str, Any] = self._of(names.HEAD)["price"]
        return price

    @property
    def turns(self) -> Sequence[Mapping[str, Any]]:
        """Figures of each turn of conversations; empty if there were none."""
        turns: Sequence[Mapping[str, Any]] = self._of(names.HEAD).get("turns", ())
        return turns

    @property
    def choices(self) -> Sequence[Mapping[str, Any]]:
        """What a search tried; empty for a recipe that was given."""
        choices: Sequence[Mapping[str, Any]] = self.quality.get("choices", ())
        return choices

    @property
    def min_tokens_per_expert(self) -> int:
        """Experts with fewer are measured by the tokens of their whole layer."""
        return int(self.gate["min_tokens_per_expert"])

    def errors(self) -> dict[str, float]:
        """Relative error behind each graph that has one."""
        found = {graph: self._of(graph).get("error") for graph in self.graphs}
        return {graph: error for graph, error in found.items() if error is not None}

    def routed(self) -> dict[str, Routed]:
        """Tokens of each expert, by layer with experts."""
        found = {}
        for graph, one in self.graphs.items():
            experts = one.get("observed", {}).get("experts")
            if experts is not None:
                found[graph] = Routed(text=experts["text"], image=experts["image"])
        return found

    def agreement(self, graph: str) -> Mapping[str, Any]:
        """How far a layer's choice of experts is the reference's; empty where nothing strayed."""
        agreement: Mapping[str, Any] = self._of(graph).get("experts", {})
        return agreement

    def weight_errors(self) -> dict[Part, list[WeightError]]:
        """Errors of all quantised matrices, by part in the order of the data."""
        found: dict[Part, list[WeightError]] = {part: [] for part in self.recipe.parts}
        for graph in self.graphs:
            for parameter, error in self._of(graph).get("weights", {}).items():
                one = WeightError(graph=graph, parameter=parameter, error=error)
                found.setdefault(part_of(parameter), []).append(one)
        return {part: errors for part, errors in found.items() if errors}

    def _of(self, graph: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.graphs[graph]["recipes"].get(self.recipe.name, {})
        return found


def part_of(parameter: str) -> Part:
    """Name the part that a quantised parameter belongs to."""
    return next(part for start, part in _PARTS_BY_NAME if parameter.startswith(start))


def _order(graph: str) -> tuple[int, int, str]:
    if graph in _FIRST:
        return _FIRST.index(graph), 0, graph
    return len(_FIRST) + (graph == names.HEAD), len(graph), graph
