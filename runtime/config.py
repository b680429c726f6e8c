"""The model's sizes, read from a checkpoint's `config.json`; every field is honoured or refused.

Does not know: tensors, graphs, tokenizer. There are no defaults for facts of the checkpoint, but
for the two that the original configuration class supplies when a file leaves them out.

Source: Kimi-VL `configuration_kimi_vl.py` (MoonViTConfig, DeepseekV3Config).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config_fields import (
    FIXED_TEXT_VALUES,
    FIXED_VISION_VALUES,
    INERT_FIELDS,
    INERT_TEXT_FIELDS,
    MOST_EXPERTS,
    TEXT_FIELDS,
    TOP_FIELDS,
    VISION_FIELDS,
    Reader,
)
from .errors import CheckpointError, describe_problems
from .json_file import read_json_object

LATENT_NORM_EPS = 1e-6
"""Epsilon of `kv_a_layernorm`: the original code never passes the config's value to it."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of MoonViT."""

    patch_size: int
    num_heads: int
    num_layers: int
    width: int
    mlp_width: int
    table_height: int
    """Rows of the learned position table."""
    table_width: int
    """Columns of the learned position table."""
    merge: int
    """Patches per side that become one image token."""

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: 3 channels, rows, columns."""
        return 3 * self.patch_size**2

    @property
    def merged_width(self) -> int:
        """Width of one image token before the projector."""
        return self.width * self.merge**2


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the DeepSeek-V3-style decoder."""

    vocab_size: int
    max_positions: int
    width: int
    dense_width: int
    """Inner width of the MLP in a dense layer."""
    expert_width: int
    """Inner width of one routed expert."""
    num_layers: int
    num_dense_layers: int
    """The first layers have a plain MLP, the others experts."""
    num_heads: int
    num_experts: int
    experts_per_token: int
    num_shared_experts: int
    routed_scale: float
    normalize_scores: bool
    latent_rank: int
    nope_size: int
    rope_size: int
    value_size: int
    rope_theta: float
    norm_eps: float

    @property
    def latent_width(self) -> int:
        """Numbers cached per token and layer: latent and rotated key."""
        return self.latent_rank + self.rope_size

    @property
    def query_size(self) -> int:
        """Size of one query head: the part without and the part with rotation."""
        return self.nope_size + self.rope_size

    @property
    def shared_width(self) -> int:
        """Inner width of the shared experts, stored as one MLP."""
        return self.expert_width * self.num_shared_experts

    def is_dense(self, layer: int) -> bool:
        """Tell whether a layer has the plain MLP."""
        return layer < self.num_dense_layers


@dataclass(frozen=True, kw_only=True)
class KimiVLConfig:
    """The whole model: two towers and the ids that join them."""

    vision: VisionConfig
    decoder: DecoderConfig
    media_token_id: int
    """The placeholder id that image rows replace."""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @classmethod
    def load(cls, path: Path) -> "KimiVLConfig":
        """Read a `config.json`.

        Raises:
            CheckpointError: the file is missing, not JSON, or says something that is not
                implemented; all such fields are named at once.
        """
        return cls.from_fields(read_json_object(path), where=str(path))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], *, where: str = "config") -> "KimiVLConfig":
        """Check the fields of a `config.json` and keep what the model needs."""
        top = Reader(fields, prefix="")
        top.expect("model_type", "kimi_vl")
        top.expect_if_present("tie_word_embeddings", False)
        vision = _read_vision(top.child("vision_config"))
        decoder = _read_decoder(top.child("text_config"))
        media_token_id = top.integer("media_placeholder_token_id", minimum=0)
        text = top.child("text_config")
        eos = sorted({*text.ids("eos_token_id"), *top.ids("eos_token_id")})
        pad = text.ids("pad_token_id") or top.ids("pad_token_id")
        if "vocab_size" in fields:
            top.expect("vocab_size", decoder.vocab_size)
        top.refuse_unknown(TOP_FIELDS | INERT_FIELDS)
        if media_token_id >= decoder.vocab_size:
            top.problem(
                f"media_placeholder_token_id {media_token_id} is outside the vocabulary of "
                f"{decoder.vocab_size}"
            )
        outside = [token for token in eos if not 0 <= token < decoder.vocab_size]
        if outside:
            top.problem(f"eos_token_id {outside[0]} is outside the vocabulary")
        if top.problems:
            raise CheckpointError(describe_problems(where, top.problems))
        return cls(
            vision=vision,
            decoder=decoder,
            media_token_id=media_token_id,
            eos_token_ids=tuple(eos),
            pad_token_id=pad[0] if pad else None,
        )


def _read_vision(reader: Reader) -> VisionConfig:
    for name, value in FIXED_VISION_VALUES.items():
        reader.expect_if_present(name, value)
    config = VisionConfig(
        patch_size=reader.integer("patch_size"),
        num_heads=reader.integer("num_attention_heads"),
        num_layers=reader.integer("num_hidden_layers"),
        width=reader.integer("hidden_size"),
        mlp_width=reader.integer("intermediate_size"),
        table_height=reader.integer("init_pos_emb_height", default=64),
        table_width=reader.integer("init_pos_emb_width", default=64),
        merge=2,
    )
    if config.width % (4 * config.num_heads):
        reader.problem(
            f"hidden_size {config.width} must be a multiple of 4 x num_attention_heads "
            f"({config.num_heads}): the 2-D rotation takes channels four at a time"
        )
    reader.refuse_unknown(VISION_FIELDS | FIXED_VISION_VALUES.keys() | INERT_FIELDS)
    return config


def _read_decoder(reader: Reader) -> DecoderConfig:
    for name, value in FIXED_TEXT_VALUES.items():
        reader.expect_if_present(name, value)
    reader.expect("scoring_func", "sigmoid")
    reader.expect("topk_method", "noaux_tc")
    config = DecoderConfig(
        vocab_size=reader.integer("vocab_size"),
        max_positions=reader.integer("max_position_embeddings"),
        width=reader.integer("hidden_size"),
        dense_width=reader.integer("intermediate_size"),
        expert_width=reader.integer("moe_intermediate_size"),
        num_layers=reader.integer("num_hidden_layers"),
        num_dense_layers=reader.integer("first_k_dense_replace", minimum=0),
        num_heads=reader.integer("num_attention_heads"),
        num_experts=reader.integer("n_routed_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        num_shared_experts=reader.integer("n_shared_experts", minimum=0),
        routed_scale=reader.number("routed_scaling_factor"),
        normalize_scores=reader.boolean("norm_topk_prob"),
        latent_rank=reader.integer("kv_lora_rank"),
        nope_size=reader.integer("qk_nope_head_dim"),
        rope_size=reader.integer("qk_rope_head_dim"),
        value_size=reader.integer("v_head_dim"),
        rope_theta=reader.number("rope_theta"),
        norm_eps=reader.number("rms_norm_eps"),
    )
    _check_decoder(reader, config)
    reader.refuse_unknown(TEXT_FIELDS | FIXED_TEXT_VALUES.keys() | INERT_TEXT_FIELDS | INERT_FIELDS)
    return config


def _check_decoder(reader: Reader, config: DecoderConfig) -> None:
    kv_heads = reader.integer("num_key_value_heads", default=config.num_heads)
    if kv_heads != config.num_heads:
        reader.problem(
            f"num_key_value_heads {kv_heads} differs from num_attention_heads "
            f"{config.num_heads}: the latent cache has one key per head"
        )
    if config.experts_per_token > config.num_experts:
        reader.problem(
            f"num_experts_per_tok {config.experts_per_token} exceeds n_routed_experts "
            f"{config.num_experts}"
        )
    if config.num_layers * config.num_experts > MOST_EXPERTS:
        reader.problem(
            f"num_hidden_layers {config.num_layers} x n_routed_experts {config.num_experts}: at "
            f"most {MOST_EXPERTS} experts in all are believed"
        )
    if config.num_shared_experts == 0:
        reader.problem("n_shared_experts 0 is not implemented: every MoE layer has shared experts")
    if config.rope_size % 2:
        reader.problem(f"qk_rope_head_dim {config.rope_size} must be even")
