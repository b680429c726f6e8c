"""The sizes of the example model, as the `config.json` of its checkpoint.

Every part of the real model is there; so is every shape that a later stage treats on its
own: widths that are multiples of 128, vision heads of 72 channels, matrices with 144, 576 and 592
inputs (592 is 16 * 37, as the release's 4304 is 16 * 269: no whole blocks of 32 or 128).
"""

from typing import Any

from export.synthetic.configs import FULL_CONFIG, MEDIA_TOKEN_OFFSET, NUM_SPECIAL_TOKENS

from .vocabulary import BASE_TOKENS

IN_TOKEN_LIMIT = 64
"""Patches above which a picture is shrunk: 8 x 8, for example."""

_TEXT: dict[str, Any] = {
    "vocab_size": BASE_TOKENS + NUM_SPECIAL_TOKENS,
    "max_position_embeddings": 2048,
    "hidden_size": 128,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "bos_token_id": BASE_TOKENS,
    "eos_token_id": BASE_TOKENS + 1,
    "pad_token_id": BASE_TOKENS + NUM_SPECIAL_TOKENS - 1,
}
_VISION: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "hidden_size": 144,
    "intermediate_size": 592,
    "init_pos_emb_height": 16,
    "init_pos_emb_width": 16,
}

NANO_CONFIG: dict[str, Any] = {
    **{key: value for key, value in FULL_CONFIG.items() if key != "auto_map"},
    "media_placeholder_token_id": BASE_TOKENS + MEDIA_TOKEN_OFFSET,
    "text_config": {**FULL_CONFIG["text_config"], **_TEXT},
    "vision_config": {**FULL_CONFIG["vision_config"], **_VISION},
}
