"""Rotary positions: adjacent channels form a pair, angles and rotation in fp32.

Source: kimi_vl `Rope2DPosEmb` (MoonViT) and `DeepseekV3RotaryEmbedding` (decoder).
"""

import torch
from torch import Tensor

VISION_THETA = 10000.0


def rotate_pairs(x: Tensor, angles: Tensor, *, num_heads: int) -> Tensor:
    """Turn each channel pair (2i, 2i+1) of every head by its angle.

    Args:
        x: (B, S, H * D), any float type; the rotation happens in fp32.
        angles: (B, S, D / 2), fp32.
        num_heads: H.

    Returns:
        (B, S, H * D) in the type of `x`.
    """
    turned = torch.onnx.ops.rotary_embedding(
        x.float(), torch.cos(angles), torch.sin(angles), interleaved=True, num_heads=num_heads
    )
    return turned.to(x.dtype)


def inverse_frequencies(size: int, theta: float) -> Tensor:
    """theta^(-2i / size) for i < size / 2, computed in fp32 as the original does."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)


def text_angles(lengths: Tensor, num_tokens: int, frequencies: Tensor) -> Tensor:
    """Angles of S tokens written behind `lengths` cached ones.

    Args:
        lengths: (B,) int64.
        num_tokens: S.
        frequencies: (D / 2,) fp32.

    Returns:
        (B, S, D / 2) fp32.
    """
    positions = lengths[:, None] + torch.arange(num_tokens)[None, :]  # (B, S)
    return positions.float()[:, :, None] * frequencies


def grid_angles(height: int, width: int, frequencies: Tensor) -> Tensor:
    """Angles of a grid of patches: even pairs turn with the column, odd pairs with the row.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        frequencies: (D / 4,) fp32, the same for both directions.

    Returns:
        (1, P, D / 2) fp32, P = height * width in row-major order.
    """
    columns = torch.arange(width).float()[:, None] * frequencies  # (w, D / 4)
    rows = torch.arange(height).float()[:, None] * frequencies  # (h, D / 4)
    shape = (height, width, frequencies.shape[0])
    pairs = torch.stack([columns[None].expand(shape), rows[:, None].expand(shape)], dim=-1)
    return pairs.reshape(1, height * width, 2 * frequencies.shape[0])
