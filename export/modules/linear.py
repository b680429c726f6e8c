"""Layers with weights: linear maps and norms.

A linear weight is kept as (in, out), the order in which MatMul reads it, so that a graph needs no
transposition; the checkpoint holds (out, in), and `export.sources` turns it while writing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """x @ weight + bias."""

    def __init__(
        self, num_inputs: int, num_outputs: int, dtype: torch.dtype, *, bias: bool
    ) -> None:
        """Reserve memory only; values come from a checkpoint."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_inputs, num_outputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_outputs, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class LayerNorm(nn.Module):
    """LayerNorm with bias over the last axis."""

    def __init__(self, width: int, dtype: torch.dtype, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in fp32, cast back, times the weight."""

    def __init__(self, width: int, dtype: torch.dtype, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
