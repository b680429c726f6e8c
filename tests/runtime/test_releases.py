import json
from pathlib import Path

import pytest

from runtime.config import KimiVLConfig
from runtime.errors import CheckpointError
from runtime.generation.releases import (
    INSTRUCT,
    RELEASES,
    THINKING,
    THINKING_2506,
    Release,
    default_sampling,
    detect_release,
    stop_ids,
)
from runtime.generation.sampling import Sampling
from runtime.prompt.tokenizer import Tokenizer

RANKS = {bytes([value]): value for value in range(256)}
TOKENIZER = Tokenizer(RANKS, {"<|im_end|>": 257, "[EOS]": 256})


TEXT_FIELDS = json.loads(
    """{
    "vocab_size": 260, "max_position_embeddings": 64, "hidden_size": 8, "intermediate_size": 8,
    "moe_intermediate_size": 8, "num_hidden_layers": 2, "first_k_dense_replace": 1,
    "num_attention_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": true,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
    "rope_theta": 800000.0, "rms_norm_eps": 1e-5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc"}"""
)


def make_config(eos: object) -> KimiVLConfig:
    vision = {"patch_size": 14, "num_attention_heads": 1, "num_hidden_layers": 1}
    fields = {
        "model_type": "kimi_vl",
        "media_placeholder_token_id": 258,
        "vision_config": {**vision, "hidden_size": 8, "intermediate_size": 8},
        "text_config": {**TEXT_FIELDS, "eos_token_id": eos},
    }
    return KimiVLConfig.from_fields(fields)


def write(folder: Path, name: str, value: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("temperature", "in_token_limit", "release"),
    [
        (0.2, None, INSTRUCT),
        (0.6, None, THINKING),
        (0.8, None, THINKING_2506),
        (0.2, 4096, INSTRUCT),
        (None, 16384, THINKING_2506),
        (1.0, 16384, THINKING_2506),  # a temperature of no release says nothing
        (0.6, 1234, THINKING),  # nor does such an image size
        (0.2, 16384, None),  # the hints contradict each other
        (0.8, 4096, None),
        (None, 4096, None),  # two releases have it
        (None, None, None),
        ("0.2", None, None),
    ],
)
def test_a_release_is_named_only_by_hints_that_leave_one(
    tmp_path: Path, temperature: object, in_token_limit: object, release: Release | None
) -> None:
    if temperature is not None:
        write(tmp_path, "generation_config", {"temperature": temperature})
    if in_token_limit is not None:
        write(tmp_path, "preprocessor_config", {"in_token_limit": in_token_limit})
    assert detect_release(tmp_path) == release


def test_the_releases_have_the_temperatures_of_their_model_cards() -> None:
    temperatures = {release.name: release.sampling.temperature for release in RELEASES}
    assert temperatures == {"instruct": 0.2, "thinking": 0.6, "thinking-2506": 0.8}


def test_an_unknown_release_is_greedy_and_a_known_one_takes_its_own() -> None:
    assert default_sampling(None) == Sampling(temperature=0)
    assert default_sampling(THINKING) == Sampling(temperature=0.6)


@pytest.mark.parametrize(
    ("eos", "generation", "expected"),
    [
        (256, None, {256, 257}),
        ([256, 3], None, {3, 256, 257}),
        (256, {"eos_token_id": 7}, {7, 256, 257}),
        (256, {"eos_token_id": [7, 9]}, {7, 9, 256, 257}),
        (256, {"eos_token_id": None}, {256, 257}),
        (None, {}, {257}),
    ],
)
def test_stop_ids_are_those_of_config_generation_config_and_template(
    tmp_path: Path, eos: object, generation: object, expected: set[int]
) -> None:
    if generation is not None:
        write(tmp_path, "generation_config", generation)
    assert stop_ids(make_config(eos), tmp_path, TOKENIZER) == expected


def test_the_id_of_the_end_of_a_message_comes_from_the_tokenizer(tmp_path: Path) -> None:
    other = Tokenizer(RANKS, {"[EOS]": 256, "[PAD]": 257, "<|im_end|>": 258})
    assert stop_ids(make_config(None), tmp_path, other) == {258}


def test_a_tokenizer_without_an_end_of_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no <\|im_end\|>"):
        stop_ids(make_config(256), tmp_path, Tokenizer(RANKS, {"[EOS]": 256}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"eos_token_id": "x"}', "eos_token_id: expected a token id or a list"),
        ('{"eos_token_id": [1, null]}', "eos_token_id: expected a token id or a list"),
        ('{"eos_token_id": 260}', "eos_token_id 260 is outside the vocabulary of 260"),
        ('{"eos_token_id": [-1, 900]}', "2 problems: .*-1 is outside .*900 is outside"),
    ],
)
def test_a_bad_generation_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"generation_config.json: .*{message}"):
        stop_ids(make_config(256), tmp_path, TOKENIZER)


@pytest.mark.parametrize("name", ["generation_config", "preprocessor_config"])
def test_a_garbled_file_is_not_an_unknown_release(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{name}.json: not readable"):
        detect_release(tmp_path)
