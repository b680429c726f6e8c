"""MoonViT for one image of any grid, and the projector into the decoder's width.

Unusual for a ViT: the learned position table is resampled to each grid (as two matrix products with
weights computed outside), positions also rotate queries and keys by column and row, and the output
keeps the four patches of a 2x2 cell apart for the projector.

Source: kimi_vl `modeling_kimi_vl.py` (MoonVitPretrainedModel, KimiVLMultiModalProjector).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.config import KimiVLConfig, VisionConfig

from .linear import LayerNorm, Linear
from .rope import VISION_THETA, grid_angles, inverse_frequencies, rotate_pairs


class PositionTable(nn.Module):
    """The learned table, (table rows, table columns, C)."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        shape = (config.table_height, config.table_width, config.width)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))

    def forward(self, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """Resample with (h, table rows) and (w, table columns) weights to (h, w, C)."""
        rows, columns, width = self.weight.shape
        table = row_weights.to(self.weight.dtype) @ self.weight.reshape(rows, columns * width)
        table = table.reshape(-1, columns, width)  # (h, table columns, C)
        resampled: Tensor = column_weights.to(self.weight.dtype) @ table  # (h, w, C)
        return resampled


class PatchEmbed(nn.Module):
    """Patches to channels, plus positions."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = Linear(config.patch_values, config.width, dtype, bias=True)
        self.pos_emb = PositionTable(config, dtype)

    def forward(self, patches: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """(h, w, 3 * 14 * 14) to (h, w, C)."""
        x = self.proj(patches.to(self.proj.weight.dtype))
        placed: Tensor = x + self.pos_emb(row_weights, column_weights)
        return placed


class VisionMLP(nn.Module):
    """Two linear maps with the tanh form of GELU between them."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc0 = Linear(config.width, config.mlp_width, dtype, bias=True)
        self.fc1 = Linear(config.mlp_width, config.width, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(1, P, C) to (1, P, C)."""
        y: Tensor = self.fc1(F.gelu(self.fc0(x), approximate="tanh"))
        return y


class VisionBlock(nn.Module):
    """One transformer block; attention sees the whole image and nothing else."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm0 = LayerNorm(config.width, dtype)
        self.norm1 = LayerNorm(config.width, dtype)
        self.wqkv = Linear(config.width, 3 * config.width, dtype, bias=True)
        self.wo = Linear(config.width, config.width, dtype, bias=True)
        self.mlp = VisionMLP(config, dtype)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(1, P, C) to (1, P, C); angles (1, P, D / 2)."""
        x = x + self.wo(self.attend(self.norm0(x), angles))
        y: Tensor = x + self.mlp(self.norm1(x))
        return y

    def attend(self, x: Tensor, angles: Tensor) -> Tensor:
        """Bidirectional attention of all patches, (1, P, C) to (1, P, C)."""
        width = x.shape[-1]
        qkv = self.wqkv(x)  # (1, P, 3C)
        q, k, v = (qkv[..., i * width : (i + 1) * width] for i in range(3))
        q = self.split_heads(rotate_pairs(q, angles, num_heads=self.num_heads))
        k = self.split_heads(rotate_pairs(k, angles, num_heads=self.num_heads))
        mixed = F.scaled_dot_product_attention(q, k, self.split_heads(v))  # (1, H, P, D)
        return mixed.transpose(1, 2).reshape(x.shape)

    def split_heads(self, x: Tensor) -> Tensor:
        """(1, P, H * D) to (1, H, P, D)."""
        return x.reshape(1, x.shape[1], self.num_heads, -1).transpose(1, 2)


class Encoder(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(config, dtype) for _ in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.width, dtype)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """(1, P, C) to (1, P, C)."""
        for block in self.blocks:
            x = block(x, angles)
        y: Tensor = self.final_layernorm(x)
        return y


class VisionTower(nn.Module):
    """MoonViT: one image in, its patches grouped by 2x2 cell out."""

    frequencies: Tensor

    def __init__(self, config: KimiVLConfig, dtype: torch.dtype) -> None:
        super().__init__()
        frequencies = inverse_frequencies(config.vision.head_size // 2, VISION_THETA)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.patch_embed = PatchEmbed(config.vision, dtype)
        self.encoder = Encoder(config.vision, dtype)

    def forward(self, patches: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """Encode one image.

        Args:
            patches: (h, w, 3 * 14 * 14) fp32, h and w even.
            row_weights: (h, table rows) fp32, bicubic weights.
            column_weights: (w, table columns) fp32.

        Returns:
            (M, 4, C): cells in row-major order, in each the patches (0,0), (0,1), (1,0), (1,1).
        """
        x = self.patch_embed(patches, row_weights, column_weights)  # (h, w, C)
        height, width, channels = x.shape
        angles = grid_angles(height, width, self.frequencies)  # (1, P, D / 2)
        x = self.encoder(x.reshape(1, height * width, channels), angles)  # (1, P, C)
        x = x.reshape(height // 2, 2, width // 2, 2, channels)
        x = x.transpose(1, 2)  # (h / 2, w / 2, 2, 2, C)
        cells: Tensor = x.reshape((height // 2) * (width // 2), 4, channels)
        return cells


class Projector(nn.Module):
    """Norm on each patch, four patches side by side, two linear maps with exact GELU."""

    def __init__(self, config: KimiVLConfig, dtype: torch.dtype) -> None:
        super().__init__()
        merged = config.vision.merged_width
        self.pre_norm = LayerNorm(config.vision.width, dtype)
        self.linear_1 = Linear(merged, merged, dtype, bias=True)
        self.linear_2 = Linear(merged, config.decoder.width, dtype, bias=True)

    def forward(self, merged: Tensor) -> Tensor:
        """(M, 4, C of the tower) to (M, C of the decoder)."""
        x = self.pre_norm(merged)
        x = x.reshape(-1, self.linear_1.weight.shape[0])  # (M, 4C)
        y: Tensor = self.linear_2(F.gelu(self.linear_1(x)))
        return y
