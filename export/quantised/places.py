"""Which parameters of a module a recipe may quantise, and where their inputs can be seen."""

from dataclasses import dataclass

from torch import nn

from ..modules.decoder import Experts, LatentUp
from ..modules.linear import Linear
from ..recipe.recipe import Part

_PARTS_BY_PATH: tuple[tuple[str, Part], ...] = (
    ("encoder.blocks.", "vision"),
    ("linear_", "projector"),
    ("self_attn.", "attention"),
    ("mlp.shared_experts.", "shared_experts"),
    ("mlp.", "dense_mlp"),
    ("lm_head", "head"),
)

_READ_TOGETHER = {"up_proj": "gate_proj", "kv_a_proj_with_mqa": "q_proj"}
"""Matrices that read the same values as another one before them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One quantisable parameter: (..., K, N)."""

    parameter: str
    part: Part
    port: str | None
    """Path of the submodule whose first argument meets the parameter; None where no activation
    format applies (the absorbed halves of `kv_b_proj`)."""
    reads_with: str
    """The parameter under which the scale of that argument is kept: the first of those that read
    the same values."""


def places(module: nn.Module) -> list[Place]:
    """List what can be quantised, in the order of the module.

    Not there: the patch embedding, which meets pixels; norms, biases, router, position table.
    """
    found = []
    for path, owner in module.named_modules():
        if isinstance(owner, Linear):
            part = _part_of(path)
            if part is not None:
                found.append(_linear_place(path, part))
        elif isinstance(owner, Experts):
            for name in ("gate_proj", "up_proj"):
                found.append(_expert_place(path, name, "up_input"))
            found.append(_expert_place(path, "down_proj", "down_input"))
        elif isinstance(owner, LatentUp):
            for name in ("key", "value"):
                full = f"{path}.{name}"
                found.append(Place(parameter=full, part="kv_b", port=None, reads_with=full))
    return found


def _linear_place(path: str, part: Part) -> Place:
    stem, _, last = path.rpartition(".")
    first = _READ_TOGETHER.get(last, last)
    owner = f"{stem}.{first}" if stem else first
    return Place(parameter=f"{path}.weight", part=part, port=path, reads_with=f"{owner}.weight")


def _expert_place(path: str, name: str, port: str) -> Place:
    first = _READ_TOGETHER.get(name, name)
    return Place(
        parameter=f"{path}.{name}",
        part="experts",
        port=f"{path}.{port}",
        reads_with=f"{path}.{first}",
    )


def _part_of(path: str) -> Part | None:
    return next((part for start, part in _PARTS_BY_PATH if path.startswith(start)), None)
