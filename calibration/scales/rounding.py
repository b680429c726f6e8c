"""A torch module that computes what a quantised graph means.

Weights are replaced by what their codes mean; what meets them is rounded on the way. Everything
else stays fp32, as on the CPU.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from export.modules.decoder import CachePort
from export.quantised.codes import LARGEST, round_to
from export.quantised.storage import quantised_places
from export.recipe.recipe import ActivationFormat, Recipe

_BLOCK = 16
_TINY = 2.0**-24
"""Smallest dynamic scale."""


def round_inputs(
    module: nn.Module,
    recipe: Recipe,
    input_scales: Mapping[str, Tensor],
    *,
    but_not: Collection[str] = (),
) -> list[RemovableHandle]:
    """Round what meets quantised parameters, as the recipe says, until the handles are removed.

    Args:
        module: one of `export.modules`.
        recipe: the recipe.
        input_scales: by parameter; needed for static formats and NVFP4.
        but_not: ports that a target rounds in its own way.
    """
    done = set(but_not)
    handles = []
    for place, part in quantised_places(module, recipe):
        if part.activations is None or place.port is None or place.port in done:
            continue
        done.add(place.port)
        rounding = _rounding(part.activations, input_scales.get(place.reads_with))
        port = module.get_submodule(place.port)
        handles.append(port.register_forward_pre_hook(_replacing_first(rounding)))
    return handles


def round_cache(module: nn.Module, recipe: Recipe, rank: int) -> list[RemovableHandle]:
    """Round what the cache of a layer keeps, as the recipe says, until the handles are removed.

    Args:
        module: one of `export.modules`; one without a cache stays as it is.
        recipe: the recipe.
        rank: R, numbers of the latent.
    """
    if recipe.cache is None:
        return []
    group = recipe.cache.group
    rounding = _replacing_first(lambda rows: round_latent(rows, rank, group))
    ports = [port for port in module.modules() if isinstance(port, CachePort)]
    return [port.register_forward_pre_hook(rounding) for port in ports]


def round_latent(rows: Tensor, rank: int, group: int) -> Tensor:
    """Round the latents of rows (..., R + rope) to int8, a scale for each group; keys stay."""
    latent = rows[..., :rank]
    groups = latent.reshape(*latent.shape[:-1], -1, group)
    step = (groups.abs().amax(dim=-1, keepdim=True) / LARGEST["int8"]).clamp_min(_TINY)
    kept = (groups / step).round() * step
    return torch.cat([kept.reshape(latent.shape), rows[..., rank:]], dim=-1)


def _replacing_first(
    rounding: Callable[[Tensor], Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, inputs: (rounding(inputs[0]), *inputs[1:])


def _rounding(form: ActivationFormat, scale: Tensor | None) -> Callable[[Tensor], Tensor]:
    if form.scale == "dynamic" and form.codes != "nvfp4":
        return lambda x: _to_step(x, (x.abs().amax() / LARGEST[form.codes]).clamp_min(_TINY), form)
    if scale is None:
        raise RuntimeError(f"{form}: no scale was found")
    fixed = scale
    if form.codes == "nvfp4":
        return lambda x: round_to_fp4(x, fixed)
    return lambda x: _to_step(x, fixed, form)


def _to_step(x: Tensor, scale: Tensor, form: ActivationFormat) -> Tensor:
    step = scale.float()
    if form.codes == "int8":  # QuantizeLinear's range: what weights leave out, -128, is in it
        return (x / step).round().clamp(-128, 127) * step
    return round_to(x / step, form.codes) * step


def round_to_fp4(x: Tensor, whole: Tensor) -> Tensor:
    """Round to NVFP4: FP8 scales for each 16 channels, times one fixed number."""
    blocks = x.reshape(*x.shape[:-1], -1, _BLOCK)
    wanted = blocks.abs().amax(dim=-1, keepdim=True) / LARGEST["nvfp4"] / whole
    factor = round_to(wanted, "fp8") * whole
    quotient = torch.where(factor == 0, torch.zeros_like(blocks), blocks / factor)
    return (round_to(quotient, "nvfp4") * factor).reshape(x.shape)
