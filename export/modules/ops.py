"""The neutral ops as torch functions: computed here, one node each in a trace.

What a node means in a graph stands in `export.graph.functions`; the tests hold the two together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.names import DOMAIN, EXPERTS_DOWN, EXPERTS_UP, LATENT_ATTENTION, ROUTER

OPSET = 1
"""Version of our own domain."""


def route(
    hidden: Tensor, weight: Tensor, bias: Tensor, *, k: int, scale: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Choose K experts for each token by biased score, weigh them by their plain score.

    Args:
        hidden: (N, C) fp32.
        weight: (C, E) fp32.
        bias: (E,) fp32, used for the choice only.
        k: experts per token.
        scale: factor on the weights of the chosen.
        normalize: divide the weights of the chosen by their sum first.

    Returns:
        Expert ids (N, K) int64 in order of falling biased score, and their weights (N, K) fp32.

    Source: DeepSeek-V3 `MoEGate` (noaux_tc) with one group.
    """
    if torch.onnx.is_in_onnx_export():
        shape = (hidden.shape[0], k)
        experts, scores = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{ROUTER}",
            (hidden, weight, bias),
            attrs={"k": k, "scale": scale, "normalize": int(normalize)},
            dtypes=(torch.int64, torch.float32),
            shapes=(shape, shape),
            version=OPSET,
        )
        return experts, scores
    plain = torch.sigmoid(hidden @ weight)  # (N, E)
    experts = torch.topk(plain + bias, k, dim=-1).indices
    scores = plain.gather(1, experts)
    if normalize:
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
    return experts, scores * scale


def experts_up(hidden: Tensor, experts: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """First half of the chosen experts: silu(hidden @ gate) * (hidden @ up).

    Args:
        hidden: (N, C).
        experts: (N, K) int64.
        gate: (E, C, I), one matrix for each expert.
        up: (E, C, I).

    Returns:
        (N, K, I).
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{EXPERTS_UP}",
            (hidden, experts, gate, up),
            dtype=hidden.dtype,
            shape=(*experts.shape, gate.shape[2]),
            version=OPSET,
        )
    out = hidden.new_zeros(*experts.shape, gate.shape[2])
    for expert in sorted(set(experts.flatten().tolist())):
        token, rank = torch.where(experts == expert)
        x = hidden[token]
        out[token, rank] = F.silu(x @ gate[expert]) * (x @ up[expert])
    return out


def experts_down(inner: Tensor, experts: Tensor, scores: Tensor, down: Tensor) -> Tensor:
    """Second half of the chosen experts, mixed by their weights.

    Args:
        inner: (N, K, I), from `experts_up`.
        experts: (N, K) int64, different in each row.
        scores: (N, K) fp32.
        down: (E, I, C).

    Returns:
        (N, C) in the type of `inner`.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{EXPERTS_DOWN}",
            (inner, experts, scores, down),
            dtype=inner.dtype,
            shape=(inner.shape[0], down.shape[2]),
            version=OPSET,
        )
    out = inner.new_zeros(inner.shape[0], down.shape[2])
    for expert in sorted(set(experts.flatten().tolist())):
        token, rank = torch.where(experts == expert)
        weighted = inner[token, rank] * scores[token, rank, None].to(inner.dtype)
        out.index_add_(0, token, weighted @ down[expert])
    return out


def latent_attention(
    query: Tensor, cache: Tensor, lengths: Tensor, *, rank: int, scale: float
) -> Tensor:
    """Attend over the latent cache, causally behind `lengths` older tokens.

    Args:
        query: (B, S, H, R + rope), absorbed: the first R channels meet the latent.
        cache: (B, 1, T, R + rope), the S new tokens already written.
        lengths: (B,) int64, tokens in each slot before these S.
        rank: R; the values are the first R channels of the cache.
        scale: factor on the scores.

    Returns:
        (B, S, H, R).
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{LATENT_ATTENTION}",
            (query, cache, lengths),
            attrs={"rank": rank, "scale": scale},
            dtype=query.dtype,
            shape=(*query.shape[:3], rank),
            version=OPSET,
        )
    num_new, num_cached = query.shape[1], cache.shape[2]
    position = lengths[:, None] + torch.arange(num_new)  # (B, S)
    visible = torch.arange(num_cached) <= position[:, :, None]  # (B, S, T)
    scores = torch.einsum("bshd,btd->bsht", query, cache[:, 0]).float() * scale
    scores = scores.masked_fill(~visible[:, :, None], float("-inf"))
    weights = scores.softmax(dim=-1).to(query.dtype)  # (B, S, H, T)
    return torch.einsum("bsht,btr->bshr", weights, cache[:, 0, :, :rank])


def write_cache(cache: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Put S rows behind the first `lengths` tokens of each slot.

    Args:
        cache: (B, 1, T, W).
        rows: (B, 1, S, W).
        lengths: (B,) int64.

    Returns:
        The new cache (B, 1, T, W); in a graph, the same memory as the old one.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            (cache, rows, lengths),
            attrs={"axis": -2, "mode": "linear"},
            dtype=cache.dtype,
            shape=cache.shape,
        )
    index = lengths[:, None] + torch.arange(rows.shape[2])  # (B, S)
    return cache.scatter(2, index[:, None, :, None].expand(rows.shape), rows)
