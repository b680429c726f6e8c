"""One decoder layer over the latent cache, and the head.

What is unusual: attention is *absorbed*. The cache holds one row of R + rope numbers per token (the
normalised latent and the rotated key, shared by all heads); `kv_b_proj` never expands it. Its key
half is applied to the query, its value half to the result, which gives the same scores and values.

Source: DeepSeek-V3 `modeling_deepseek.py` (DeepseekV3Attention, DeepseekV3MoE);
arXiv 2405.04434, section 2.1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.config import LATENT_NORM_EPS, DecoderConfig

from .linear import Linear, RMSNorm
from .ops import experts_down, experts_up, latent_attention, route, write_cache
from .rope import inverse_frequencies, rotate_pairs, text_angles


class LatentUp(nn.Module):
    """`kv_b_proj`, cut into its two halves and by head."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        heads, rank = config.num_heads, config.latent_rank
        self.key = nn.Parameter(torch.empty(heads, config.nope_size, rank, dtype=dtype))
        self.value = nn.Parameter(torch.empty(heads, rank, config.value_size, dtype=dtype))


class CachePort(nn.Module):
    """Hands on what the cache keeps; a place where calibration can round it."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows, (B, 1, S, R + rope)."""
        return rows


class Attention(nn.Module):
    """Multi-head latent attention."""

    frequencies: Tensor

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.num_heads
        frequencies = inverse_frequencies(config.rope_size, config.rope_theta)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.q_proj = Linear(width, heads * config.query_size, dtype, bias=False)
        self.kv_a_proj_with_mqa = Linear(width, config.latent_width, dtype, bias=False)
        self.kv_a_layernorm = RMSNorm(config.latent_rank, dtype, LATENT_NORM_EPS)
        self.cache_port = CachePort()
        self.kv_b_proj = LatentUp(config, dtype)
        self.o_proj = Linear(heads * config.value_size, width, dtype, bias=False)

    def forward(self, x: Tensor, cache: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C), (B, 1, T, R + rope), (B,) to (B, S, C) and the new cache."""
        c = self.config
        angles = text_angles(lengths, x.shape[1], self.frequencies)  # (B, S, rope / 2)
        cache = write_cache(cache, self.cache_port(self.cache_rows(x, angles)), lengths)
        query = self.absorbed_query(x, angles)  # (B, S, H, R + rope)
        mixed = latent_attention(
            query, cache, lengths, rank=c.latent_rank, scale=c.query_size**-0.5
        )  # (B, S, H, R)
        values = mixed.transpose(1, 2) @ self.kv_b_proj.value  # (B, H, S, v)
        values = values.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)  # (B, S, H * v)
        return self.o_proj(values), cache

    def cache_rows(self, x: Tensor, angles: Tensor) -> Tensor:
        """What the cache keeps of each token: (B, 1, S, R + rope)."""
        rank = self.config.latent_rank
        both = self.kv_a_proj_with_mqa(x)  # (B, S, R + rope)
        latent = self.kv_a_layernorm(both[..., :rank])
        key = rotate_pairs(both[..., rank:], angles, num_heads=1)
        return torch.cat([latent, key], dim=-1)[:, None]

    def absorbed_query(self, x: Tensor, angles: Tensor) -> Tensor:
        """Queries that meet the cache as it is: (B, S, H, R + rope)."""
        c = self.config
        batch, tokens = x.shape[:2]
        query = self.q_proj(x).reshape(batch, tokens, c.num_heads, c.query_size)
        turned = query[..., c.nope_size :].reshape(batch, tokens, c.num_heads * c.rope_size)
        turned = rotate_pairs(turned, angles, num_heads=c.num_heads)
        turned = turned.reshape(batch, tokens, c.num_heads, c.rope_size)
        plain = query[..., : c.nope_size].transpose(1, 2)  # (B, H, S, nope)
        absorbed = (plain @ self.kv_b_proj.key).transpose(1, 2)  # (B, S, H, R)
        return torch.cat([absorbed, turned], dim=-1)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, dtype, bias=False)
        self.up_proj = Linear(width, inner, dtype, bias=False)
        self.down_proj = Linear(inner, width, dtype, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Gate(nn.Module):
    """The router's weights, always fp32."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.width, config.num_experts))
        self.e_score_correction_bias = nn.Parameter(torch.empty(config.num_experts))


class Port(nn.Module):
    """Hands on what meets the experts; a place where calibration can look at it or round it."""

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """Return x, (N, ...); `experts` (N, K) int64 says who reads which row."""
        del experts
        return x


class Experts(nn.Module):
    """All routed experts of a layer, stacked."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        up = (config.num_experts, config.width, config.expert_width)
        down = (config.num_experts, config.expert_width, config.width)
        self.gate_proj = nn.Parameter(torch.empty(up, dtype=dtype))
        self.up_proj = nn.Parameter(torch.empty(up, dtype=dtype))
        self.down_proj = nn.Parameter(torch.empty(down, dtype=dtype))
        self.up_input = Port()
        self.down_input = Port()


class Taps(NamedTuple):
    """What the router decided: observed by calibration and validation."""

    experts: Tensor
    """(B, S, K) int64."""
    scores: Tensor
    """(B, S, K) fp32."""
    margin: Tensor
    """(B, S) fp32: biased score of the last chosen minus that of the first not chosen."""


class MoE(nn.Module):
    """Routed experts plus shared experts."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.gate = Gate(config)
        self.experts = Experts(config, dtype)
        self.shared_experts = MLP(config.width, config.shared_width, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, C) to (B, S, C), expert ids and scores (B * S, K)."""
        c = self.config
        flat = x.reshape(-1, c.width)  # (N, C)
        experts, scores = route(
            flat.float(),
            self.gate.weight,
            self.gate.e_score_correction_bias,
            k=c.experts_per_token,
            scale=c.routed_scale,
            normalize=c.normalize_scores,
        )
        seen = self.experts.up_input(flat, experts)
        inner = experts_up(seen, experts, self.experts.gate_proj, self.experts.up_proj)
        inner = self.experts.down_input(inner, experts)  # (N, K, I)
        routed = experts_down(inner, experts, scores, self.experts.down_proj)
        return routed.reshape(x.shape) + self.shared_experts(x), experts, scores

    def margin(self, x: Tensor) -> Tensor:
        """How far the choice was from another one, (B, S); infinite if all experts are chosen."""
        k = self.config.experts_per_token
        biased = torch.sigmoid(x.float() @ self.gate.weight) + self.gate.e_score_correction_bias
        if k == self.config.num_experts:
            return torch.full_like(biased[..., 0], float("inf"))
        best = torch.topk(biased, k + 1, dim=-1).values
        return best[..., k - 1] - best[..., k]

    def taps(self, x: Tensor, experts: Tensor, scores: Tensor) -> Taps:
        """Shape the router's decisions by slot and token."""
        shape = (x.shape[0], x.shape[1], self.config.experts_per_token)
        return Taps(experts.reshape(shape), scores.reshape(shape), self.margin(x))


class DecoderLayer(nn.Module):
    """Attention and an MLP or experts, each behind a norm and added to its input."""

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, *, dense: bool, taps: bool = False
    ) -> None:
        super().__init__()
        self.with_taps = taps and not dense
        self.input_layernorm = RMSNorm(config.width, dtype, config.norm_eps)
        self.self_attn = Attention(config, dtype)
        self.post_attention_layernorm = RMSNorm(config.width, dtype, config.norm_eps)
        self.mlp: MLP | MoE = (
            MLP(config.width, config.dense_width, dtype) if dense else MoE(config, dtype)
        )

    def forward(self, hidden: Tensor, cache: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Run S new tokens of B slots.

        Args:
            hidden: (B, S, C).
            cache: (B, 1, T, R + rope).
            lengths: (B,) int64, tokens in each slot before these S.

        Returns:
            Hidden states (B, S, C), the cache with the new rows, and `Taps` if asked for.
        """
        mixed, cache = self.self_attn(self.input_layernorm(hidden), cache, lengths)
        hidden = hidden + mixed
        x = self.post_attention_layernorm(hidden)
        if isinstance(self.mlp, MLP):
            return hidden + self.mlp(x), cache
        y, experts, scores = self.mlp(x)
        taps = self.mlp.taps(x, experts, scores) if self.with_taps else ()
        return hidden + y, cache, *taps


class Head(nn.Module):
    """Final norm and logits of chosen tokens."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"norm": RMSNorm(config.width, dtype, config.norm_eps)})
        self.lm_head = Linear(config.width, config.vocab_size, dtype, bias=False)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Logits (N, V) fp32 of the tokens `rows` (N,) of the flattened hidden (B, S, C)."""
        chosen = hidden.reshape(-1, hidden.shape[-1])[rows]
        logits: Tensor = self.lm_head(self.model["norm"](chosen)).float()
        return logits
