"""What a recipe says: for each part of the model the format of its weights and activations.

A recipe is data. The named ones are the TOML files beside this one, own ones have the same form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal[
    "vision",
    "projector",
    "attention",
    "kv_b",
    "dense_mlp",
    "experts",
    "shared_experts",
    "head",
]
PARTS: tuple[Part, ...] = Part.__args__  # type: ignore[attr-defined]  # of a Literal
"""Parts whose matrices a recipe may quantise, in the order of the data.

Beside them a recipe may say how the embedding table and the latent cache are kept. Everything else
stays in the base type: norms, biases, position table, the rotated keys and the softmax; the router
stays in fp32.
"""

BASES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How a matrix is stored: its codes, and how many inputs share a scale."""

    codes: Literal["int8", "int4", "fp8", "nvfp4"]
    group: int | None = None
    """Inputs of one output that share a scale; None: all of them (one scale for each output)."""

    def __str__(self) -> str:
        """Name for tables: `int4/128`."""
        return self.codes if self.group is None else f"{self.codes}/{self.group}"

    @property
    def bits(self) -> int:
        """Size of one code."""
        return 4 if self.codes in ("int4", "nvfp4") else 8


@dataclass(frozen=True, kw_only=True)
class ActivationFormat:
    """How what meets a matrix is rounded, one scale for the whole tensor."""

    codes: Literal["int8", "fp8", "nvfp4"]
    scale: Literal["static", "dynamic"] = "static"
    """Static: found by calibration; dynamic: of each tensor's own maximum. NVFP4 is dynamic."""
    observer: Literal["max", "percentile", "mse"] = "max"
    """How calibration chooses a static scale."""

    def __str__(self) -> str:
        """Name for tables: `int8 static`."""
        return f"{self.codes} {self.scale}"


@dataclass(frozen=True, kw_only=True)
class PartRecipe:
    """One part: formats, and what calibration may change to lose less."""

    weights: WeightFormat
    activations: ActivationFormat | None = None
    balance: Literal["none", "smooth", "activation-aware"] = "none"
    """Scaling of input channels, taken back in the layer before: so that activations become easier
    (SmoothQuant) or weights that meet large inputs finer (AWQ)."""
    strength: float = 0.5
    """The exponent of `smooth`; `activation-aware` searches its own."""
    clip: bool = False
    """Search for scales below the largest weight that lose less where inputs are large."""

    def values(self) -> dict[str, Any]:
        """Give what is not a default in the form of a recipe's file."""
        found: dict[str, Any] = {"weights": self.weights.codes}
        if self.weights.group is not None and self.weights.codes != "nvfp4":
            found["group"] = self.weights.group
        if self.activations is not None:
            found["activations"] = self.activations.codes
            if self.activations.codes != "nvfp4":
                found["scale"] = self.activations.scale
            if self.activations.scale == "static":
                found["observer"] = self.activations.observer
        if self.balance != "none":
            found["balance"] = self.balance
        if self.balance == "smooth":
            found["strength"] = self.strength
        return found | ({"clip": True} if self.clip else {})

    def __str__(self) -> str:
        """Name for tables: `int8 x int8 static`."""
        return f"{self.weights} x {self.activations}" if self.activations else str(self.weights)


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """How the latent of a cached token is kept; its rotated key stays in the base type.

    Scales are dynamic, one for each group of each token: nothing is calibrated.
    """

    latent: Literal["int8"]
    group: int = 128
    """Numbers of one token's latent that share a scale."""

    def __str__(self) -> str:
        """Name for tables: `int8/128`."""
        return f"{self.latent}/{self.group}"

    def values(self) -> dict[str, Any]:
        """Give it in the form of a recipe's file."""
        return {"latent": self.latent, "group": self.group}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a recipe may lose against fp32 on held-out samples."""

    kl: float = 0.05
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats."""
    top1: float = 0.95
    """Share of stable positions with the same most likely token."""
    exact_match: float = 0.03
    """Loss of exact match, where answers are known: a share, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe."""

    name: str
    summary: str = ""
    base: str = "bf16"
    """Type of everything that is not quantised, and of scales: one of `BASES`."""
    may_round_activations: bool = False
    """Whether a target may round what meets int4 and int8 weights to int8, each block of a row by
    a scale of its own, to be faster; what that loses is the target's own price."""
    parts: Mapping[Part, PartRecipe] = field(default_factory=dict)
    """Parts that are left out stay in the base type."""
    embedding: Literal["int8"] | None = None
    """Codes of the embedding table, one scale for each token's row; None: the base type."""
    cache: CacheFormat | None = None
    """None: the base type, or what the target computes in."""
    budget: Budget = Budget()
    is_searched: bool = False
    """Whether the parts are still to be found by measurement: the recipe `auto`."""

    @property
    def is_quantised(self) -> bool:
        """Whether any part is, or will be."""
        return bool(self.parts or self.embedding or self.cache) or self.is_searched

    def values(self) -> dict[str, Any]:
        """Give what a graph follows from in the form of a recipe's file: no summary, no budget."""
        parts: dict[str, dict[str, Any]] = {
            name: part.values() for name, part in self.parts.items()
        }
        if self.embedding is not None:
            parts["embedding"] = {"weights": self.embedding}
        if self.cache is not None:
            parts["cache"] = self.cache.values()
        rounding = {"may_round_activations": True} if self.may_round_activations else {}
        return {"base": self.base, **rounding, "parts": parts}

    def text(self, part: Part) -> str:
        """Name a part's format for tables."""
        return str(self.parts[part]) if part in self.parts else self.base
