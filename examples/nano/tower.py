"""MoonViT and its projector in a form that trains: many pictures of one grid at once.

Source: `modeling_kimi_vl.py` (MoonVitPretrainedModel, KimiVLMultiModalProjector).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.config import VisionConfig

_THETA = 10000.0


def turn_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the channel pairs (2i, 2i + 1) of (..., D) by complex numbers (..., D / 2)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def turns_of(angles: Tensor) -> Tensor:
    """Make the complex numbers that turn by so many radians."""
    return torch.polar(torch.ones_like(angles), angles)


class PositionTable(nn.Module):
    """The learned table, (table rows, table columns, C)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        shape = (config.table_height, config.table_width, config.width)
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, height: int, width: int) -> Tensor:
        """Resample to a grid: (h, w, C)."""
        table = self.weight.permute(2, 0, 1)[None]  # (1, C, rows, columns)
        resized = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
        return resized[0].permute(1, 2, 0)


class PatchEmbed(nn.Module):
    """Patches to channels, plus positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.pos_emb = PositionTable(config)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, h, w, 3 * 14 * 14) to (B, h, w, C)."""
        x = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        placed: Tensor = x + self.pos_emb(patches.shape[1], patches.shape[2])
        return placed


class VisionMLP(nn.Module):
    """Two linear maps with the tanh form of GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc0 = nn.Linear(config.width, config.mlp_width)
        self.fc1 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) to (B, P, C)."""
        y: Tensor = self.fc1(F.gelu(self.fc0(x), approximate="tanh"))
        return y


class VisionBlock(nn.Module):
    """One transformer block; attention sees the whole picture and nothing else."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm0 = nn.LayerNorm(config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.wqkv = nn.Linear(config.width, 3 * config.width)
        self.wo = nn.Linear(config.width, config.width)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """(B, P, C) to (B, P, C); turns (P, D / 2), complex."""
        x = x + self.wo(self._attend(self.norm0(x), turns))
        y: Tensor = x + self.mlp(self.norm1(x))
        return y

    def _attend(self, x: Tensor, turns: Tensor) -> Tensor:
        qkv = self.wqkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, P, D)
        q, k = turn_pairs(qkv[:2], turns)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2])
        return mixed.transpose(1, 2).reshape(x.shape)


class Encoder(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """(B, P, C) to (B, P, C)."""
        for block in self.blocks:
            x = block(x, turns)
        y: Tensor = self.final_layernorm(x)
        return y


class VisionTower(nn.Module):
    """Pictures of one grid in, their patches grouped by 2 x 2 cell out."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.patch_embed = PatchEmbed(config)
        self.encoder = Encoder(config)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, h, w, 3 * 14 * 14) to (B, h * w / 4, 4, C)."""
        x = self.patch_embed(patches)
        batch, height, width, channels = x.shape
        turns = turns_of(self._angles(height, width, x.device))
        x = self.encoder(x.flatten(1, 2), turns)
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        cells: Tensor = x.reshape(batch, height * width // 4, 4, channels)
        return cells

    def _angles(self, height: int, width: int, device: torch.device) -> Tensor:
        """Even pairs turn with the column, odd pairs with the row: (P, D / 2)."""
        steps = torch.arange(0, self.head_size, 4, device=device).float() / self.head_size
        frequencies = 1.0 / _THETA**steps  # (D / 4,)
        columns = torch.arange(width, device=device).float()[:, None] * frequencies
        rows = torch.arange(height, device=device).float()[:, None] * frequencies
        shape = (height, width, len(frequencies))
        pairs = torch.stack([columns[None].expand(shape), rows[:, None].expand(shape)], dim=-1)
        return pairs.reshape(height * width, 2 * len(frequencies))


class Projector(nn.Module):
    """Norm on each patch, four patches side by side, two linear maps with exact GELU."""

    def __init__(self, config: VisionConfig, decoder_width: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(config.width)
        self.linear_1 = nn.Linear(config.merged_width, config.merged_width)
        self.linear_2 = nn.Linear(config.merged_width, decoder_width)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, M, 4, C of the tower) to (B, M, C of the decoder)."""
        x = self.pre_norm(cells).flatten(-2)
        y: Tensor = self.linear_2(F.gelu(self.linear_1(x)))
        return y
