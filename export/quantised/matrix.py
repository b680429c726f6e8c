"""One quantised matrix, or a stack of them: (..., K, N), K inputs and N outputs.

Scales have the same number of axes: (..., K / group, N), or (..., 1, N) without groups. They are
rounded to the type in which they are stored *before* the codes are made, so that no error of theirs
is left uncorrected.

NVFP4 has scales of two levels: one in FP8 for 16 inputs, times one in fp32 for the whole matrix
(each of a stack has its own codes but shares that one).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe.recipe import WeightFormat
from .codes import LARGEST, decode, encode, round_to

_TINY = 2.0**-24
"""Scales of zero columns; the smallest number of fp16."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The scales of one parameter."""

    step: Tensor
    """(..., K / group or 1, N): the size of one step; in NVFP4 float8_e4m3fn, before `whole`."""
    whole: Tensor | None = None
    """() fp32, only in NVFP4."""

    def values(self) -> Tensor:
        """The factors of the codes, fp32."""
        factors = self.step.float()
        return factors if self.whole is None else factors * self.whole


def scales_for(weight: Tensor, form: WeightFormat, base: torch.dtype) -> Scales:
    """Give the scales that just hold the largest weight of each group.

    Args:
        weight: (..., K, N) fp32.
        form: codes and group.
        base: type of scales, but for NVFP4.
    """
    largest = group_maxima(weight, form)
    if form.codes == "nvfp4":
        return two_level_scales(largest)
    return Scales(step=storable(largest / LARGEST[form.codes], base))


def two_level_scales(largest: Tensor) -> Scales:
    """Turn the largest weight of each group into NVFP4's scales.

    Source: NVIDIA's NVFP4 convention, whole = max / (6 x 448).
    """
    whole = (largest.max() / (LARGEST["nvfp4"] * LARGEST["fp8"])).clamp_min(_TINY)
    step = round_to(largest / LARGEST["nvfp4"] / whole, "fp8")
    # A step of zero would lose its group; the smallest FP8 number is 2^-9.
    step = torch.where((step == 0) & (largest > 0), step.new_tensor(2.0**-9), step)
    return Scales(step=step.to(torch.float8_e4m3fn), whole=whole)


def storable(scale: Tensor, base: torch.dtype) -> Tensor:
    """Round scales to the type they are stored in; none is zero."""
    rounded = scale.clamp_min(_TINY).to(base)
    return torch.where(rounded == 0, torch.full_like(rounded, _TINY), rounded)


def group_maxima(weight: Tensor, form: WeightFormat) -> Tensor:
    """Largest magnitude of each group: (..., K / group or 1, N)."""
    return grouped(weight, form).abs().amax(dim=-2)


def grouped(weight: Tensor, form: WeightFormat) -> Tensor:
    """(..., K, N) to (..., groups, inputs of a group, N), a view."""
    *stack, inputs, outputs = weight.shape
    return weight.reshape(*stack, -1, form.group or inputs, outputs)


def quantise(weight: Tensor, scales: Scales, form: WeightFormat) -> Tensor:
    """Codes of a weight: its shape, type as `codes.encode` says."""
    factors = scales.values().unsqueeze(-2)
    return encode(_quotient(grouped(weight, form), factors), form.codes).reshape(weight.shape)


def dequantise(encoded: Tensor, scales: Scales, form: WeightFormat) -> Tensor:
    """What the codes mean, fp32."""
    values = decode(grouped(encoded, form), form.codes) * scales.values().unsqueeze(-2)
    return values.reshape(encoded.shape)


def rounded(weight: Tensor, scales: Scales, form: WeightFormat) -> Tensor:
    """What is left of a weight after quantisation, fp32; `dequantise` of `quantise`."""
    factors = scales.values().unsqueeze(-2)
    return (round_to(_quotient(grouped(weight, form), factors), form.codes) * factors).reshape(
        weight.shape
    )


def _quotient(values: Tensor, factors: Tensor) -> Tensor:
    """Divide; a group of zeros has a step of zero in NVFP4 and stays zero."""
    return torch.where(factors == 0, torch.zeros_like(values), values / factors)
