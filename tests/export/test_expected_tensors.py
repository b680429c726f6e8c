import json
from math import prod

from export.checkpoint.expected import expected_tensors
from export.synthetic.configs import FULL_CONFIG, TINY_CONFIG, config_bytes
from runtime.config import KimiVLConfig

FULL = expected_tensors(KimiVLConfig.from_fields(FULL_CONFIG))


def count(prefix: str) -> tuple[int, int]:
    shapes = [shape for name, shape in FULL.items() if name.startswith(prefix)]
    return len(shapes), sum(prod(shape) for shape in shapes)


def test_the_release_has_5652_tensors_and_16407656048_parameters() -> None:
    assert count("") == (5652, 16_407_656_048)


def test_the_three_parts_have_the_published_counts() -> None:
    assert count("vision_tower.") == (329, 416_866_032)
    assert count("multi_modal_projector.") == (6, 30_679_808)
    assert count("language_model.") == (5317, 15_960_108_544 + 1_664)


def test_the_published_total_counts_the_router_biases() -> None:
    biases = [shape for name, shape in FULL.items() if name.endswith("e_score_correction_bias")]
    assert biases == [(64,)] * 26


def test_one_block_of_each_kind_has_the_published_counts() -> None:
    assert count("vision_tower.encoder.blocks.26.") == (12, 15_239_504)
    assert count("language_model.model.layers.0.mlp.") == (3, 69_206_016)
    assert count("language_model.model.layers.26.mlp.experts.63.") == (3, 8_650_752)
    assert count("language_model.model.layers.26.mlp.shared_experts.") == (3, 17_301_504)
    assert count("language_model.model.layers.5.self_attn.") == (5, 13_762_560 + 512)


def test_shapes_are_those_of_the_release() -> None:
    layer = "language_model.model.layers.3."
    published = {
        "vision_tower.patch_embed.proj.weight": (1152, 3, 14, 14),
        "vision_tower.patch_embed.pos_emb.weight": (64, 64, 1152),
        "vision_tower.encoder.blocks.0.wqkv.weight": (3456, 1152),
        "vision_tower.encoder.blocks.0.mlp.fc0.weight": (4304, 1152),
        "vision_tower.encoder.blocks.0.mlp.fc1.weight": (1152, 4304),
        "vision_tower.encoder.final_layernorm.bias": (1152,),
        "multi_modal_projector.pre_norm.weight": (1152,),
        "multi_modal_projector.linear_1.weight": (4608, 4608),
        "multi_modal_projector.linear_2.weight": (2048, 4608),
        "language_model.model.embed_tokens.weight": (163840, 2048),
        "language_model.lm_head.weight": (163840, 2048),
        "language_model.model.norm.weight": (2048,),
        f"{layer}self_attn.q_proj.weight": (3072, 2048),
        f"{layer}self_attn.kv_a_proj_with_mqa.weight": (576, 2048),
        f"{layer}self_attn.kv_a_layernorm.weight": (512,),
        f"{layer}self_attn.kv_b_proj.weight": (4096, 512),
        f"{layer}self_attn.o_proj.weight": (2048, 2048),
        f"{layer}mlp.gate.weight": (64, 2048),
        f"{layer}mlp.experts.9.down_proj.weight": (2048, 1408),
        f"{layer}mlp.shared_experts.up_proj.weight": (2816, 2048),
        "language_model.model.layers.0.mlp.down_proj.weight": (2048, 11264),
    }
    assert {name: FULL.get(name) for name in published} == published


def test_the_full_config_on_disk_is_the_release_config() -> None:
    config = KimiVLConfig.from_fields(json.loads(config_bytes("full")))
    assert config.media_token_id == 163605
    assert config.eos_token_ids == (163585,)
    assert config.pad_token_id == 163839
    assert config.decoder.rope_theta == 800000.0
    assert config.decoder.latent_width == 576


def test_sizes_that_agree_in_the_release_are_not_mixed_up() -> None:
    # In the release queries, keys and values have heads of 128; here no two sizes are equal.
    shapes = expected_tensors(KimiVLConfig.from_fields(TINY_CONFIG))
    attention = "language_model.model.layers.2.self_attn."
    by_hand = {
        "q_proj.weight": (4 * (24 + 16), 64),
        "kv_a_proj_with_mqa.weight": (32 + 16, 64),
        "kv_a_layernorm.weight": (32,),
        "kv_b_proj.weight": (4 * (24 + 20), 32),
        "o_proj.weight": (64, 4 * 20),
    }
    assert {name: shapes[attention + name] for name in by_hand} == by_hand
    assert shapes["multi_modal_projector.linear_2.weight"] == (64, 4 * 48)
    assert shapes["vision_tower.patch_embed.pos_emb.weight"] == (8, 8, 48)
    assert shapes["language_model.lm_head.weight"] == (756, 64)
