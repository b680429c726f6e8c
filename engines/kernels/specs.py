"""What a kernel and a node with kernels are, as data.

Does not know: Triton, TensorRT, the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from export.recipe.recipe import WeightFormat
from runtime.plugins.launch import Output


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """Sizes of a model's experts."""

    width: int
    """C."""
    inner: int
    """I: the width inside an expert."""
    num_experts: int
    """E."""
    num_chosen: int
    """K: experts per token."""


@dataclass(frozen=True, kw_only=True)
class ExpertFormat:
    """In what experts are stored and computed."""

    base: str
    """Type of rows, and of scales: `fp32`, `fp16`, `bf16`."""
    weights: WeightFormat | None
    """None: the base type."""

    @property
    def codes(self) -> str:
        """Type of the matrices."""
        return self.weights.codes if self.weights else self.base

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0: all of them, or there is no scale."""
        return (self.weights.group or 0) if self.weights else 0


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A run-time parameter of a kernel."""

    name: str
    source: str
    """Where its value comes from; see `Launch.arguments`."""
    kind: str
    """Its type in Triton, as in `*fp16`."""


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """What is compiled."""

    function: Literal["route", "sort_by_expert", "grouped_up", "grouped_down"]
    parameters: tuple[Parameter, ...]
    constants: Mapping[str, int | float | None] = field(hash=False)
    num_warps: int
    num_stages: int

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a launch passes, in order: the parameters, then two pointers to scratch memory.

        Triton adds the pointers to every kernel; ours use none.
        """
        return (*(parameter.source for parameter in self.parameters), "null", "null")


@dataclass(frozen=True, kw_only=True)
class VariantSpec:
    """A kernel for a range of N; see `runtime.plugins.launch.Variant`."""

    min_tokens: int
    block_rows: int
    columns: int
    kernel: KernelSpec


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """A node and its kernels; see `runtime.plugins.launch.Launch`."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[Output, ...]
    rows: Literal["one", "tokens", "tiles"]
    sizes: ExpertSizes
    variants: tuple[VariantSpec, ...]
