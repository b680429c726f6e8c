"""What stages have to do: one model in one recipe, its limits, the samples of a calibration."""

from dataclasses import dataclass, field
from functools import cached_property

from export.recipe.recipe import PartRecipe, Recipe
from export.recipe.sizes import Parameter, graph_bytes, parameters, recipe_of
from runtime import names
from runtime.config import KimiVLConfig
from runtime.limits import Limits

from .passes.block_size import block_size, common_block_size

IMAGE_SHARE = 0.5
"""Of the tokens of a sample."""
HELD_OUT_SHARE, MOST_HELD_OUT = 5, 100
"""A fifth of the conversations, at most a hundred, as `calibrate` does it."""
MOST_JOINED, SINGLES_FOR_JOINED = 6, 8
"""Conversations of several turns: one for eight held-out ones."""
TURNS, MOST_TURN_TOKENS = 4, 4096
"""Each has so many turns, and no turn more tokens with all that is before it."""


@dataclass(frozen=True, kw_only=True)
class SampleCount:
    """How much a calibration runs through the model."""

    conversations: int = 128
    tokens: int = 512
    """Of one conversation, image tokens included."""

    @property
    def all_tokens(self) -> int:
        """Tokens that are run in fp32."""
        return self.conversations * self.tokens

    @property
    def held_out_tokens(self) -> int:
        """Tokens that are run as the recipe has them, too; later turns behind earlier ones."""
        held_out = min(MOST_HELD_OUT, self.conversations // HELD_OUT_SHARE)
        joined = max(1, min(MOST_JOINED, held_out // SINGLES_FOR_JOINED))
        return held_out * self.tokens + joined * sum(self._turn_tokens)

    @property
    def longest_tokens(self) -> int:
        """Of the longest that runs at once."""
        return max([self.tokens, *self._turn_tokens])

    @property
    def _turn_tokens(self) -> list[int]:
        """Of each turn with all that is before it; longer ones are left out."""
        lengths = (turn * self.tokens for turn in range(1, TURNS + 1))
        return [length for length in lengths if length <= MOST_TURN_TOKENS]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One model in one recipe, and what is asked of it."""

    config: KimiVLConfig
    recipe: Recipe
    layers: tuple[int, ...]
    limits: Limits
    samples: SampleCount = field(default_factory=SampleCount)
    is_made_from_seed: bool = False
    """Whether the checkpoint's values are made when they are read."""

    @cached_property
    def parameters(self) -> list[Parameter]:
        """What the graphs and the embedding table hold."""
        return parameters(self.config, self.layers)

    @cached_property
    def graphs(self) -> dict[str, list[Parameter]]:
        """Parameters of each graph."""
        found: dict[str, list[Parameter]] = {}
        for parameter in self.parameters:
            if parameter.graph != names.EMBEDDING:
                found.setdefault(parameter.graph, []).append(parameter)
        return found

    @cached_property
    def weights_bytes(self) -> int:
        """The neutral artifact's weights and embedding table."""
        return sum(graph_bytes(self.parameters, self.recipe).values())

    @property
    def layer_graphs(self) -> list[str]:
        """Graphs of decoder layers."""
        return [names.layer_name(layer) for layer in self.layers]

    @property
    def experts(self) -> PartRecipe | None:
        """How the experts are quantised."""
        return self.recipe.parts.get("experts")

    def codes_of(self, parameter: Parameter) -> str | None:
        """What a parameter is quantised to; None where it is not."""
        part = recipe_of(parameter, self.recipe)
        return None if part is None else part.weights.codes

    def block_of(self, parameter: Parameter) -> int:
        """Inputs that share a scale once codes lie in blocks; 0 if experts have no block alike."""
        part = recipe_of(parameter, self.recipe)
        group = None if part is None else part.weights.group
        if parameter.part != "experts":
            return block_size(parameter.inputs, group)
        decoder = self.config.decoder
        return common_block_size([decoder.width, decoder.expert_width], [group]) or 0

    def is_searched(self, parameter: Parameter) -> bool:
        """Whether calibration tries several scales or factors for a parameter."""
        part = recipe_of(parameter, self.recipe)
        return part is not None and (part.clip or part.balance == "activation-aware")
