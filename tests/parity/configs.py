"""Three odd models, as different from each other as the architecture allows.

Head counts that divide nothing, ranks below and above the head sizes, one or two dense layers or
none, every expert chosen or few, one shared expert or two, tables that images must shrink to.
"""

import copy
import json
from pathlib import Path
from typing import Any

from export.synthetic.configs import TINY_CONFIG

_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {"text_config": {}, "vision_config": {}},
    "odd": {
        "text_config": {
            "hidden_size": 72,
            "intermediate_size": 50,
            "moe_intermediate_size": 36,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "kv_lora_rank": 40,
            "qk_nope_head_dim": 20,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 1.5,
        },
        "vision_config": {
            "hidden_size": 72,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 70,
            "init_pos_emb_height": 7,
            "init_pos_emb_width": 7,
        },
    },
    "all_experts": {
        "text_config": {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 0,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "n_routed_experts": 6,
            "num_experts_per_tok": 6,
            "n_shared_experts": 3,
            "norm_topk_prob": False,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 24,
            "v_head_dim": 32,
        },
        "vision_config": {
            "hidden_size": 80,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "init_pos_emb_height": 12,
            "init_pos_emb_width": 12,
        },
    },
}
NAMES = tuple(_CHANGES)


def write_config(name: str, folder: Path) -> Path:
    """Write one of the configs as JSON and return its path."""
    fields = copy.deepcopy(TINY_CONFIG)
    for part, changes in _CHANGES[name].items():
        fields[part].update(changes)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(fields))
    return path
