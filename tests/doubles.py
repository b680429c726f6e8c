"""Small stand-ins for a checkpoint: the text files on disk and a config that fits them."""

from pathlib import Path
from typing import Any

from export.synthetic.text_files import SPECIAL_OFFSETS, write_text_files
from runtime.config import DecoderConfig, KimiVLConfig, VisionConfig
from runtime.prompt.special_tokens import IM_END, MEDIA_PAD, NUM_SPECIAL_SLOTS
from runtime.prompt.tokenizer import Tokenizer

BASE_TOKENS = 1200
IN_TOKEN_LIMIT = 64


def write_small_text_files(
    folder: Path, *, base_tokens: int = BASE_TOKENS, in_token_limit: int = IN_TOKEN_LIMIT
) -> Path:
    """Write the text files of a checkpoint with a small vocabulary, and return the folder."""
    write_text_files(folder, base_tokens=base_tokens, in_token_limit=in_token_limit)
    return folder


def special_id(name: str, *, base_tokens: int = BASE_TOKENS) -> int:
    """Where a named special token is in the small vocabulary."""
    return base_tokens + SPECIAL_OFFSETS[name]


def make_small_config(*, base_tokens: int = BASE_TOKENS, **changes: object) -> KimiVLConfig:
    """Make a config with 2 vision and 3 decoder layers that fits the small text files."""
    fields: dict[str, Any] = {
        "vision": VisionConfig(
            patch_size=14,
            num_heads=4,
            num_layers=2,
            width=64,
            mlp_width=96,
            table_height=8,
            table_width=8,
            merge=2,
        ),
        "decoder": DecoderConfig(
            vocab_size=base_tokens + NUM_SPECIAL_SLOTS,
            max_positions=512,
            width=64,
            dense_width=96,
            expert_width=32,
            num_layers=3,
            num_dense_layers=1,
            num_heads=4,
            num_experts=8,
            experts_per_token=3,
            num_shared_experts=2,
            routed_scale=2.446,
            normalize_scores=True,
            latent_rank=32,
            nope_size=24,
            rope_size=16,
            value_size=24,
            rope_theta=800000.0,
            norm_eps=1e-5,
        ),
        "media_token_id": special_id(MEDIA_PAD, base_tokens=base_tokens),
        "eos_token_ids": (special_id(IM_END, base_tokens=base_tokens),),
        "pad_token_id": None,
    }
    return KimiVLConfig(**{**fields, **changes})


def load_small_tokenizer(folder: Path) -> Tokenizer:
    """Write the small text files into a folder and load their tokenizer."""
    return Tokenizer.load(write_small_text_files(folder))
