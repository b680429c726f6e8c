"""What a plugin node needs to know, as data: types, shapes, grids, machine code.

Everything here is arithmetic on the number of tokens N.

Does not know: TensorRT, CUDA, how kernels are made.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import UnsupportedError
from ..names import ROUTER

SORT_BY_EXPERT = "SortByExpert"
GROUPED_UP = "GroupedUp"
GROUPED_DOWN = "GroupedDown"
PLUGIN_OPS = (ROUTER, SORT_BY_EXPERT, GROUPED_UP, GROUPED_DOWN)
"""Ops of the domain `kimivl` that have a plugin."""

PLUGIN_VERSION = "1"
# A cubin also runs on later devices of its family; those for 9.0 and up are bound to theirs, since
# Triton compiles them with features that only it has. Source: CUDA C++ Programming Guide, "Binary
# Compatibility", which leaves out 8.7 (Tegra).
_ALSO_RUNS = {86: (80,), 89: (86, 80)}


class Size(NamedTuple):
    """One axis of an output: `constant + per_token * N`."""

    constant: int
    per_token: int


class Grid(NamedTuple):
    """How many programs a launch has along x and y."""

    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output of a node."""

    dtype: str
    """Name in `DataType` of TensorRT."""
    shape: tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class Cubin:
    """A kernel compiled for one compute capability."""

    sm: int
    """Compute capability, as in 89."""
    entry: str
    num_warps: int
    shared_bytes: int
    """Dynamic shared memory of a launch."""
    code: bytes


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kernel for a range of N: from `min_tokens` to that of the next variant."""

    min_tokens: int
    block_rows: int
    """Tokens, or pairs of token and expert, of one program."""
    columns: int
    """Programs beside each other along x."""
    cubins: tuple[Cubin, ...]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """All that a plugin needs to describe its outputs and to launch its kernel."""

    op: str
    inputs: tuple[str, ...]
    """Type of each input, named as in `DataType` of TensorRT; N is the first one's first axis."""
    outputs: tuple[Output, ...]
    arguments: tuple[str, ...]
    """What the kernel takes, in order: `input 0`, `output 0`, `tokens` (N as int32), `null`."""
    rows: Literal["one", "tokens", "tiles"]
    """What the grid's y axis counts: nothing, blocks of tokens, or tiles of one expert's pairs."""
    num_experts: int
    num_chosen: int
    variants: tuple[Variant, ...]

    def variant_for(self, num_tokens: int) -> Variant:
        """Choose the variant for N tokens."""
        return [one for one in self.variants if one.min_tokens <= num_tokens][-1]

    def grid(self, variant: Variant, num_tokens: int) -> Grid:
        """Count the programs for N tokens; 0 along y means that there is nothing to launch.

        P pairs fill at most floor((P + A (b - 1)) / b) tiles of b pairs, where A, the number of
        experts that have any, is at most P and at most E.
        """
        block = variant.block_rows
        if self.rows == "one":
            return Grid(variant.columns, 1)
        if self.rows == "tokens":
            return Grid(variant.columns, -(-num_tokens // block))
        num_pairs = num_tokens * self.num_chosen
        busy = min(num_pairs, self.num_experts)
        return Grid(variant.columns, (num_pairs + busy * (block - 1)) // block)

    def cubin_for(self, variant: Variant, sm: int) -> Cubin:
        """Choose the cubin for a device.

        Args:
            variant: one of this launch.
            sm: compute capability of the device, as in 89.

        Raises:
            UnsupportedError: none was compiled for it.
        """
        by_sm = {cubin.sm: cubin for cubin in variant.cubins}
        for able in (sm, *_ALSO_RUNS.get(sm, ())):
            if able in by_sm:
                return by_sm[able]
        made = ", ".join(f"sm{one}" for one in sorted(by_sm))
        raise UnsupportedError(
            f"{self.op}: this engine's kernels were compiled for {made}, the device is sm{sm}; "
            f"build the engine for sm{sm}"
        )
