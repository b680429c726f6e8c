"""The `config.json` of synthetic checkpoints: the release's own, and a small one.

Does not know: tensors, tokenizer files.

Source: config.json of the Kimi-VL-A3B releases, which agree in every field that shapes the model.
"""

import json
from typing import Any

NUM_SPECIAL_TOKENS = 256
"""The last ids of every vocabulary of the family."""
MEDIA_TOKEN_OFFSET = 21
"""Of the image placeholder among the special tokens."""
TINY_BASE_TOKENS = 500

IN_TOKEN_LIMITS = {"tiny": 144, "full": 4096}
"""Patches per image before it is shrunk; full: as in Instruct and Thinking."""
DEFAULT_IN_TOKEN_LIMIT = 4096

Fields = dict[str, Any]


def _token_ids(base_tokens: int) -> Fields:
    return {
        "bos_token_id": base_tokens,
        "eos_token_id": base_tokens + 1,
        "pad_token_id": base_tokens + NUM_SPECIAL_TOKENS - 1,
    }


_REMOTE_CONFIG = "configuration_kimi_vl.KimiVLConfig"
_REMOTE_MODEL = "modeling_kimi_vl.KimiVLForConditionalGeneration"

FULL_CONFIG: Fields = {
    "architectures": ["KimiVLForConditionalGeneration"],
    "auto_map": {
        "AutoConfig": _REMOTE_CONFIG,
        "AutoModel": _REMOTE_MODEL,
        "AutoModelForCausalLM": _REMOTE_MODEL,
    },
    "ignore_index": -100,
    "media_placeholder_token_id": 163605,
    "model_type": "kimi_vl",
    "text_config": {
        "vocab_size": 163840,
        "max_position_embeddings": 131072,
        "hidden_size": 2048,
        "intermediate_size": 11264,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.446,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "hidden_act": "silu",
        "rope_theta": 800000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-05,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "ep_size": 1,
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "pretraining_tp": 1,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        **_token_ids(163584),
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.3",
    "vision_config": {
        "model_type": "moonvit",
        "patch_size": 14,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "merge_kernel_size": [2, 2],
        "torch_dtype": "bfloat16",
    },
}

_TINY_TEXT: Fields = {
    "vocab_size": TINY_BASE_TOKENS + NUM_SPECIAL_TOKENS,
    "max_position_embeddings": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    **_token_ids(TINY_BASE_TOKENS),
}
_TINY_VISION: Fields = {
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 100,
    "init_pos_emb_height": 8,
    "init_pos_emb_width": 8,
}

TINY_CONFIG: Fields = {
    **FULL_CONFIG,
    "media_placeholder_token_id": TINY_BASE_TOKENS + MEDIA_TOKEN_OFFSET,
    "text_config": {**FULL_CONFIG["text_config"], **_TINY_TEXT},
    "vision_config": {**FULL_CONFIG["vision_config"], **_TINY_VISION},
}
"""No two sizes agree where a mix-up should show: head sizes, widths, counts all differ."""

CONFIGS = {"tiny": TINY_CONFIG, "full": FULL_CONFIG}


def config_bytes(shape: str) -> bytes:
    """Render one of `CONFIGS` as the text of a `config.json`."""
    return (json.dumps(CONFIGS[shape], indent=2) + "\n").encode()
