"""Two independent implementations of the model, from transformers, filled with a checkpoint.

`kimi_k25` with one frame per image is numerically Kimi-VL; `deepseek_v3` is its decoder. They share
no code with this toolkit: they read the shards with safetensors and the config as JSON.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from . import torchvision_operators

_RENAMES = {
    "multi_modal_projector.linear_1": "mm_projector.proj.0",
    "multi_modal_projector.linear_2": "mm_projector.proj.2",
    "multi_modal_projector.pre_norm": "mm_projector.pre_norm",
}


def load_whole(checkpoint: Path, workplace: Path) -> Any:  # noqa: ANN401  # transformers has no types
    """Load `Kimi_K25ForConditionalGeneration` in fp32."""
    torchvision_operators.declare()
    from transformers import Kimi_K25ForConditionalGeneration

    fields = json.loads((checkpoint / "config.json").read_text())
    vision, text = fields["vision_config"], fields["text_config"]
    config = {
        "model_type": "kimi_k25",
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "vision_config": {
            "model_type": "kimi_k25_vision",
            "patch_size": vision["patch_size"],
            "pos_emb_height": vision["init_pos_emb_height"],
            "pos_emb_width": vision["init_pos_emb_width"],
            "pos_emb_time": 4,
            "num_attention_heads": vision["num_attention_heads"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "hidden_size": vision["hidden_size"],
            "intermediate_size": vision["intermediate_size"],
            "hidden_act": "gelu_pytorch_tanh",
            "merge_kernel_size": vision["merge_kernel_size"],
        },
        "text_config": _text_config(text),
        "projection_hidden_size": vision["hidden_size"],
        "projection_layer_norm_eps": 1e-5,
        "image_token_id": fields["media_placeholder_token_id"],
        "video_token_id": text["vocab_size"] - 2,
        "image_start_token_id": text["vocab_size"] - 3,
        "image_end_token_id": text["vocab_size"] - 4,
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
    tensors = {_renamed(name): value for name, value in _tensors(checkpoint).items()}
    return _load(Kimi_K25ForConditionalGeneration, config, tensors, workplace / "whole")


def load_decoder(checkpoint: Path, workplace: Path) -> Any:  # noqa: ANN401  # transformers has no types
    """Load `DeepseekV3ForCausalLM` in fp32."""
    torchvision_operators.declare()
    from transformers import DeepseekV3ForCausalLM

    fields = json.loads((checkpoint / "config.json").read_text())
    config = {**_text_config(fields["text_config"]), "architectures": ["DeepseekV3ForCausalLM"]}
    prefix = "language_model."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in _tensors(checkpoint).items()
        if name.startswith(prefix)
    }
    return _load(DeepseekV3ForCausalLM, config, tensors, workplace / "decoder")


def _text_config(text: dict[str, Any]) -> dict[str, Any]:
    return {**text, "model_type": "deepseek_v3", "num_nextn_predict_layers": 0}


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def _renamed(name: str) -> str:
    for old, new in _RENAMES.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    return name


def _load(
    model_class: Any,  # noqa: ANN401  # transformers has no types
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    folder: Path,
) -> Any:  # noqa: ANN401  # transformers has no types
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    left = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(left.values()):
        raise RuntimeError(f"the oracle did not take all tensors: {left}")
    return model.eval()
