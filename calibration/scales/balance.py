"""Balancing: channels scaled up in one layer and down in the one before, so that less is lost.

Factors are powers of two: they change no bit of any value that is not quantised, in any float type.

Sources: SmoothQuant (arXiv 2211.10438), equation 4; AWQ (arXiv 2306.00978), section 3.2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.modules.decoder import MLP, Attention, DecoderLayer, Experts, Head, MoE
from export.modules.vision import VisionBlock
from export.recipe.recipe import PartRecipe

_TINY = 1e-8
_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Link:
    """Channels that leave one layer and enter another: x / s there, s * W here."""

    port: str
    """Where the channels are observed."""
    givers: Mapping[str, Callable[[Tensor], Tensor]]
    """Parameters before, and how 1 / s is laid over them."""
    takers: tuple[str, ...]
    """Parameters behind, (..., K, N): s goes over K."""
    is_per_expert: bool = False


def links(module: nn.Module) -> list[Link]:
    """List the links of a module; those through a GELU do not exist."""
    found: list[Link] = []
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(owner, DecoderLayer):
            found += _layer_links(owner)
        elif isinstance(owner, Attention):
            heads, _, size = owner.kv_b_proj.value.shape
            found.append(_value_link(prefix, heads, size))
        elif isinstance(owner, MLP | Experts):
            found.append(_inner_link(prefix, stacked=isinstance(owner, Experts)))
        elif isinstance(owner, VisionBlock):
            found += _vision_links(prefix)
        elif isinstance(owner, Head):
            found.append(_norm_link(("model.norm.weight",), "lm_head", ("lm_head.weight",)))
    return found


def _layer_links(layer: DecoderLayer) -> list[Link]:
    attention = ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa")
    before = _norm_link(
        ("input_layernorm.weight",), attention[0], tuple(f"{path}.weight" for path in attention)
    )
    norm, halves = ("post_attention_layernorm.weight",), ("gate_proj", "up_proj")
    if not isinstance(layer.mlp, MoE):
        takers = tuple(f"mlp.{half}.weight" for half in halves)
        return [before, _norm_link(norm, "mlp.gate_proj", takers)]
    takers = (
        *(f"mlp.experts.{half}" for half in halves),
        *(f"mlp.shared_experts.{half}.weight" for half in halves),
        "mlp.gate.weight",
    )
    return [before, _norm_link(norm, "mlp.experts.up_input", takers)]


def _vision_links(prefix: str) -> list[Link]:
    norms = {"norm0": "wqkv", "norm1": "mlp.fc0"}
    return [
        _norm_link(
            (f"{prefix}{norm}.weight", f"{prefix}{norm}.bias"),
            f"{prefix}{linear}",
            (f"{prefix}{linear}.weight",),
        )
        for norm, linear in norms.items()
    ]


def _norm_link(givers: tuple[str, ...], port: str, takers: tuple[str, ...]) -> Link:
    return Link(port=port, givers=dict.fromkeys(givers, lambda x: x), takers=takers)


def _inner_link(prefix: str, *, stacked: bool) -> Link:
    if not stacked:
        return Link(
            port=f"{prefix}down_proj",
            givers={f"{prefix}up_proj.weight": lambda x: x},
            takers=(f"{prefix}down_proj.weight",),
        )
    return Link(
        port=f"{prefix}down_input",
        givers={f"{prefix}up_proj": lambda x: x[:, None]},  # (E, I) over (E, C, I)
        takers=(f"{prefix}down_proj",),
        is_per_expert=True,
    )


def _value_link(prefix: str, heads: int, size: int) -> Link:
    return Link(
        port=f"{prefix}o_proj",
        givers={f"{prefix}kv_b_proj.value": lambda x: x.reshape(heads, 1, size)},
        takers=(f"{prefix}o_proj.weight",),
    )


def smooth_factors(largest: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """Give s of (C,) or (E, C): large where inputs are large and weights are small.

    Args:
        largest: (C,) or (E, C), largest input of each channel.
        weights: (..., C, N) each.
        strength: how much of the difficulty moves to the weights.
    """
    shape = largest.shape
    tops = [_per_channel(weight, largest.dim()) for weight in weights]
    top = torch.stack([one.expand(shape) for one in tops]).amax(dim=0)
    wanted = largest.clamp_min(_TINY) ** strength / top.clamp_min(_TINY) ** (1 - strength)
    return _to_powers_of_two(wanted)


def aware_factors(mean_squares: Tensor, loss: Callable[[Tensor], float]) -> Tensor:
    """Search s = (root mean square)^a for the exponent that loses least.

    Args:
        mean_squares: (C,) or (E, C) of the inputs.
        loss: what a given s loses, over all matrices.
    """
    size = mean_squares.sqrt().clamp_min(_TINY)
    tries = [_to_powers_of_two(size ** (step / _STEPS)) for step in range(_STEPS + 1)]
    losses = [loss(one) for one in tries]
    return tries[losses.index(min(losses))]


def wants_balance(parts: Sequence[PartRecipe]) -> PartRecipe | None:
    """Return what decides over a link: the first part behind it that asks for balancing."""
    return next((part for part in parts if part.balance != "none"), None)


def _per_channel(weight: Tensor, dims: int) -> Tensor:
    """Largest weight of each input: (C,), or (E, C) of a stack."""
    tops = weight.abs().amax(dim=-1)
    return tops.reshape(-1, tops.shape[-1]).amax(dim=0) if dims == 1 else tops


def _to_powers_of_two(wanted: Tensor) -> Tensor:
    """Round to powers of two around a middle of one."""
    logs = wanted.clamp_min(_TINY).log2()
    middle = (logs.amax(dim=-1, keepdim=True) + logs.amin(dim=-1, keepdim=True)) / 2
    return (logs - middle).round().clamp(-12, 12).exp2()
