"""The model in a form that trains: whole sequences, plain causal attention, no cache.

All sequences of a batch begin with the same tokens (system message, roles); these are computed
once. So hidden states are flat, (N, C): first the shared beginning, then each sequence's own.

Parameter names are the checkpoint's, but for the routed experts, which are stacked here. Nothing is
shared with the modules that are compiled, so that the two check each other.

Source: `modeling_kimi_vl.py` (MoonVitPretrainedModel, DeepseekV3ForCausalLM).
"""

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.config import LATENT_NORM_EPS, DecoderConfig, KimiVLConfig

from .tower import Projector, VisionTower, turn_pairs, turns_of

GATE_LENGTHS = (0.5, 2.0)
"""Length at the start of an expert's row of the gate, against that of other rows: first, last."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens of a batch lie in the flat hidden states."""

    batch: int
    shared: int
    """Tokens that all sequences begin with."""
    turns: Tensor
    """(N, 1, rope / 2) complex: the rotation of each token."""
    mask: Tensor
    """(S - shared, S) fp32: -inf where one of a sequence's own tokens does not look."""
    counts: Tensor
    """(N,) fp32: in how many sequences a token stands; 0 for padding."""

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, D) to (1, H, shared, D) and (B, H, own, D)."""
        own = x[self.shared :].reshape(self.batch, -1, *x.shape[1:]).transpose(1, 2)
        return x[None, : self.shared].transpose(1, 2), own

    def join(self, shared: Tensor, own: Tensor) -> Tensor:
        """The reverse of `cut`, with heads side by side: (N, H * D)."""
        flat = [x.transpose(1, 2).flatten(2).flatten(0, 1) for x in (shared, own)]
        return torch.cat(flat)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of flat queries (N, H, D) to flat keys and values: (N, H * v)."""
        (q1, q2), (k1, k2), (v1, v2) = (self.cut(x) for x in (query, keys, values))
        shared = F.scaled_dot_product_attention(q1, k1, v1, is_causal=True)
        k2, v2 = (
            torch.cat([one.expand(self.batch, -1, -1, -1), two], dim=2)
            for one, two in ((k1, k2), (v1, v2))
        )
        # Faster here than torch's function, whose quick path wants keys and values of one size.
        scores = q2 @ k2.mT * q2.shape[-1] ** -0.5 + self.mask  # (B, H, own, S)
        return self.join(shared, scores.softmax(dim=-1) @ v2)


class Attention(nn.Module):
    """Multi-head latent attention with keys and values expanded."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, rank = config.width, config.num_heads, config.latent_rank
        self.q_proj = nn.Linear(width, heads * config.query_size, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, config.latent_width, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(rank, eps=LATENT_NORM_EPS)
        expanded = heads * (config.nope_size + config.value_size)
        self.kv_b_proj = nn.Linear(rank, expanded, bias=False)
        self.o_proj = nn.Linear(heads * config.value_size, width, bias=False)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(N, C) to (N, C)."""
        c = self.config
        query = self.q_proj(x).reshape(len(x), c.num_heads, c.query_size)
        plain, turned = query.split([c.nope_size, c.rope_size], dim=-1)
        query = torch.cat([plain, turn_pairs(turned, layout.turns)], dim=-1)  # (N, H, nope + rope)
        latent, key = self.kv_a_proj_with_mqa(x).split([c.latent_rank, c.rope_size], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).reshape(len(x), c.num_heads, -1)
        keys, values = expanded.split([c.nope_size, c.value_size], dim=-1)
        key = turn_pairs(key[:, None], layout.turns).expand(-1, c.num_heads, -1)
        keys = torch.cat([keys, key], dim=-1)
        y: Tensor = self.o_proj(layout.attend(query, keys, values))
        return y


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Gate(nn.Module):
    """The router's weights; the correction bias follows the loads, not the gradient."""

    e_score_correction_bias: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.width))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts))


class Experts(nn.Module):
    """All routed experts of a layer, stacked: (E, out, in)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        experts, width, inner = config.num_experts, config.width, config.expert_width
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """(N, C), sorted by expert with so many rows each, to (N, C)."""
        gates, ups, downs = (w.unbind() for w in (self.gate_proj, self.up_proj, self.down_proj))
        outputs = [
            F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
            for x, gate, up, down in zip(torch.split(rows, counts), gates, ups, downs, strict=True)
        ]
        return torch.cat(outputs)


class MoE(nn.Module):
    """Routed experts plus shared experts; counts how often each expert is chosen."""

    loads: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.width, config.shared_width)
        self.register_buffer("loads", torch.zeros(config.num_experts), persistent=False)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """(N, C) to (N, C); `counts` (N,) is how often each token counts as load."""
        k = self.config.experts_per_token
        scores = torch.sigmoid(F.linear(x, self.gate.weight))  # (N, E)
        with torch.no_grad():
            chosen = (scores + self.gate.e_score_correction_bias).topk(k, dim=-1).indices
            order = chosen.flatten().argsort(stable=True)  # (N * K,)
            self.loads += self._count(chosen, counts[:, None].expand(-1, k).flatten())
            rows = [int(count) for count in self._count(chosen).tolist()]
        weights = scores.gather(1, chosen)
        if self.config.normalize_scores:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        weights = weights * self.config.routed_scale
        token = order // k
        outputs = self.experts(x[token], rows) * weights.flatten()[order, None]
        y: Tensor = torch.zeros_like(x).index_add(0, token, outputs) + self.shared_experts(x)
        return y

    def _count(self, chosen: Tensor, weights: Tensor | None = None) -> Tensor:
        experts = self.config.num_experts
        return torch.bincount(chosen.flatten(), weights, minlength=experts)


class DecoderLayer(nn.Module):
    """Attention and an MLP or experts, each behind a norm and added to its input."""

    def __init__(self, config: DecoderConfig, *, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.dense_width) if dense else MoE(config)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(N, C) to (N, C)."""
        x = x + self.self_attn(self.input_layernorm(x), layout)
        inner = self.post_attention_layernorm(x)
        mlp = self.mlp
        y: Tensor = x + (mlp(inner, layout.counts) if isinstance(mlp, MoE) else mlp(inner))
        return y


class DecoderStack(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            DecoderLayer(config, dense=config.is_dense(index)) for index in range(config.num_layers)
        )
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)


class LanguageModel(nn.Module):
    """The decoder with its head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = DecoderStack(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, x: Tensor, real: Tensor, wanted: Tensor, shared: int) -> Tensor:
        """Give logits (V) of wanted tokens.

        Args:
            x: embedded tokens (B, S, C).
            real: (B, S) bool, false for padding.
            wanted: (B, S) bool, not set in the shared beginning.
            shared: tokens that are the same at the beginning of all sequences.

        Returns:
            (number of wanted tokens, V).
        """
        layout = self._lay_out(real, shared)
        flat = torch.cat([x[0, :shared], x[:, shared:].flatten(0, 1)])  # (N, C)
        for layer in self.model.layers:
            flat = layer(flat, layout)
        chosen = flat[shared:][wanted[:, shared:].flatten()]
        y: Tensor = self.lm_head(self.model.norm(chosen))
        return y

    def _lay_out(self, real: Tensor, shared: int) -> Layout:
        batch, length = real.shape
        size = self.config.rope_size
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=real.device) / size
        positions = torch.arange(length, device=real.device)
        flat = torch.cat([positions[:shared], positions[shared:].repeat(batch)])
        counts = [real[0, :shared] * batch, real[:, shared:].flatten()]
        return Layout(
            batch=batch,
            shared=shared,
            turns=turns_of(flat[:, None, None].float() / self.config.rope_theta**steps),
            mask=torch.where(positions[shared:, None] >= positions[None], 0.0, -torch.inf),
            counts=torch.cat(counts).float(),
        )


class NanoModel(nn.Module):
    """Both towers and the projector."""

    def __init__(self, config: KimiVLConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(config.vision, config.decoder.width)
        self.language_model = LanguageModel(config.decoder)

    def see(self, patches: Tensor) -> Tensor:
        """Encode pictures of one grid: (B, h, w, 3 * 14 * 14) to (B, h * w / 4, C)."""
        rows: Tensor = self.multi_modal_projector(self.vision_tower(patches))
        return rows

    def forward(self, ids: Tensor, rows: Tensor | None, real: Tensor, wanted: Tensor) -> Tensor:
        """Give the logits (N, V) of the wanted places.

        Args:
            ids: (B, S) int64, the media id at each place of an image row.
            rows: (B, M, C), the image rows of each sequence in order; None without pictures.
            real: (B, S) bool, false for padding.
            wanted: (B, S) bool.
        """
        x = self.language_model.model.embed_tokens(ids)
        is_media = ids == self.config.media_token_id
        if rows is not None:
            x = x.masked_scatter(is_media[..., None], rows)
        own = (is_media | wanted | (ids != ids[:1])).any(dim=0)
        y: Tensor = self.language_model(x, real, wanted, shared=int(own.int().argmax()))
        return y

    def moe_layers(self) -> list[MoE]:
        """The layers that have experts."""
        return [module for module in self.modules() if isinstance(module, MoE)]


def initialise(model: NanoModel, generator: torch.Generator) -> None:
    """Draw all weights: 1 / sqrt(inputs) for matrices, 1 for embeddings, biases zero.

    With the usual 0.02 for everything, a model of this size does not learn. The rows of a gate get
    different lengths: a short row's score never leaves the middle, so that its expert is chosen for
    the sake of its correction bias alone, and the bias matters as it does in the releases.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, _spread(name, weight), generator=generator)
            if name.endswith("gate.weight"):
                weight.mul_(torch.linspace(*GATE_LENGTHS, len(weight))[:, None])


def _spread(name: str, weight: Tensor) -> float:
    if name.endswith("embed_tokens.weight"):
        return 1.0
    if name.endswith("pos_emb.weight"):
        return 0.5
    fan_in = weight[0].numel() if name.endswith("patch_embed.proj.weight") else weight.shape[-1]
    return 1.0 / sqrt(fan_in)
