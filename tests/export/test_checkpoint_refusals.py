"""Every way in which a checkpoint folder can be wrong, refused at open with its own words."""

import json
import re
from pathlib import Path

import pytest

from export.checkpoint.reader import Checkpoint
from runtime.errors import CheckpointError
from tests.export.checkpoint_files import (
    FIRST,
    NORM,
    ROUTER,
    SECOND,
    Draft,
    entry,
    shard_bytes,
)

INDEX = "model.safetensors.index.json"


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    return Draft(tmp_path)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError, match=r"problem") as caught:
        Checkpoint.open(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{folder}: ")
    return text


def test_the_unaltered_draft_opens(draft: Draft) -> None:
    assert len(Checkpoint.open(draft.write()).names) == len(draft.weight_map)


def test_a_missing_tensor_is_named(draft: Draft) -> None:
    del draft.weight_map[NORM], draft.headers[SECOND][NORM]
    draft.repack()
    assert refusal(draft.write()).endswith(f"1 problem: {NORM} is missing")


def test_a_missing_tensor_of_a_single_file_is_named(draft: Draft) -> None:
    del draft.headers[SECOND][NORM]
    assert refusal(draft.write_single()).endswith(f"1 problem: {NORM} is missing")


def test_an_unexpected_tensor_is_named(draft: Draft) -> None:
    draft.headers[SECOND]["lm_head.weight"] = entry("BF16", (2, 2))
    draft.weight_map["lm_head.weight"] = SECOND
    draft.repack()
    assert "1 problem: lm_head.weight is not a tensor of this model" in refusal(draft.write())


def test_a_rotation_buffer_is_the_one_tolerated_extra(draft: Draft) -> None:
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    draft.headers[FIRST] = {name: entry("F32", (8,)), **draft.headers[FIRST]}
    draft.weight_map[name] = FIRST
    draft.repack()
    assert name not in Checkpoint.open(draft.write()).names


def test_a_wrong_shape_tells_both_shapes(draft: Draft) -> None:
    draft.headers[FIRST][ROUTER] = entry("BF16", (64, 8))
    draft.repack()
    text = refusal(draft.write())
    assert text.endswith(f"1 problem: {ROUTER} has shape [64, 8], expected [8, 64]")


def test_an_integer_dtype_is_refused(draft: Draft) -> None:
    draft.headers[FIRST][ROUTER]["dtype"] = "I8"
    draft.repack()
    assert f"1 problem: {ROUTER} has dtype I8, expected one of F64, F32" in refusal(draft.write())


def test_an_unknown_dtype_is_refused(draft: Draft) -> None:
    draft.headers[FIRST][ROUTER]["dtype"] = "F4"
    assert f"1 problem: {ROUTER} has dtype F4, expected" in refusal(draft.write())


def test_a_tensor_in_another_shard_than_the_index_says_is_found(draft: Draft) -> None:
    draft.weight_map[ROUTER] = SECOND
    text = refusal(draft.write())
    assert f"the index puts {ROUTER} in {SECOND}, which does not hold it" in text
    assert f"{FIRST} holds {ROUTER}, which the index does not put there" in text
    assert "2 problems" in text


def test_a_missing_shard_is_named_once(draft: Draft) -> None:
    (draft.write() / SECOND).unlink()
    assert refusal(draft.folder).endswith(f"1 problem: shard {SECOND} is missing")


def test_a_link_to_nowhere_is_a_missing_shard(draft: Draft) -> None:
    path = draft.write() / SECOND
    path.unlink()
    path.symlink_to("../blobs/absent")
    assert f"shard {SECOND} is missing" in refusal(draft.folder)


def test_a_truncated_shard_is_found(draft: Draft) -> None:
    path = draft.write() / SECOND
    path.write_bytes(path.read_bytes()[:-1])
    assert (
        f"1 problem: {SECOND} is truncated or its header lies: {NORM} ends at byte "
        f"{draft.data_bytes[SECOND]} of {draft.data_bytes[SECOND] - 1} (1 tensors reach outside)"
    ) in refusal(draft.folder)


def test_bytes_after_the_last_tensor_are_found(draft: Draft) -> None:
    draft.data_bytes[SECOND] += 3
    assert f"1 problem: 3 unused bytes at the end of {SECOND}" in refusal(draft.write())


def test_offsets_far_outside_the_file_are_found(draft: Draft) -> None:
    begin, end = draft.headers[SECOND][NORM]["data_offsets"]
    draft.headers[SECOND][NORM]["data_offsets"] = [begin + 2**40, end + 2**40]
    assert f"{NORM} ends at byte {end + 2**40} of {end}" in refusal(draft.write())


def test_overlapping_tensors_are_found(draft: Draft) -> None:
    names = list(draft.headers[SECOND])
    first, second = (draft.headers[SECOND][name] for name in names[:2])
    second["shape"], second["data_offsets"] = first["shape"], first["data_offsets"]
    assert f"{names[1]} overlaps {names[0]} in {SECOND}" in refusal(draft.write())


def test_a_hole_between_tensors_is_found(draft: Draft) -> None:
    begin, end = draft.headers[SECOND][NORM]["data_offsets"]
    draft.headers[SECOND][NORM]["data_offsets"] = [begin + 4, end + 4]
    draft.data_bytes[SECOND] += 4
    assert f"1 problem: 4 unused bytes before {NORM} in {SECOND}" in refusal(draft.write())


def test_bytes_that_do_not_fit_shape_and_dtype_are_found(draft: Draft) -> None:
    draft.headers[SECOND][NORM]["dtype"] = "F32"
    text = refusal(draft.write())
    assert f"1 problem: {NORM} in {SECOND} has 128 bytes, but F32 [64] needs 256" in text


def test_a_header_longer_than_its_file_is_found(draft: Draft) -> None:
    (draft.write() / SECOND).write_bytes(shard_bytes(b"{}", b"", length=2**63))
    text = refusal(draft.folder)
    assert f"{SECOND} claims a header of {2**63} bytes, but only 2 bytes follow" in text


def test_a_header_over_the_library_limit_is_refused_unread(draft: Draft) -> None:
    path = draft.write() / SECOND
    with path.open("wb") as stream:
        stream.write((200_000_000).to_bytes(8, "little"))
        stream.truncate(300_000_000)  # sparse
    assert f"{SECOND} claims a header of 200000000 bytes, the limit is" in refusal(draft.folder)


def test_a_file_of_few_bytes_is_refused(draft: Draft) -> None:
    (draft.write() / SECOND).write_bytes(b"abc")
    assert f"{SECOND} has 3 bytes, too few for a safetensors file" in refusal(draft.folder)


def test_a_git_lfs_pointer_says_how_to_get_the_data(draft: Draft) -> None:
    (draft.write() / SECOND).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    assert f"{SECOND} is a Git LFS pointer, not the data" in refusal(draft.folder)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[1]", "expected a JSON object, found list"),
        (b"{nonsense", "Expecting property name"),
        (b"\xff\xfe{}", "can't decode"),
        (b'{"a": {}, "a": {}}', "key a occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_header_that_is_not_one_json_object_is_refused(
    draft: Draft, raw: bytes, words: str
) -> None:
    (draft.write() / SECOND).write_bytes(shard_bytes(raw, b""))
    text = refusal(draft.folder)
    assert f"1 problem: the header of {SECOND} is not usable: " in text
    assert words in text


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"dtype": 1, "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [True], "data_offsets": [0, 2]},
        {"dtype": "BF16", "shape": [2.0], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [0]},
        {"dtype": "BF16", "shape": [2]},
    ],
)
def test_an_entry_that_is_no_tensor_description_is_refused(draft: Draft, value: object) -> None:
    draft.headers[SECOND][NORM] = value
    text = refusal(draft.write())
    assert f"1 problem: the header of {SECOND} does not describe {NORM} properly" in text


def test_what_only_the_library_refuses_is_refused_at_open(draft: Draft) -> None:
    draft.write()
    raw = json.dumps({"__metadata__": {"format": 1}, **draft.headers[SECOND]}).encode()
    (draft.folder / SECOND).write_bytes(shard_bytes(raw, bytes(draft.data_bytes[SECOND])))
    assert f"{SECOND} is refused by the safetensors library" in refusal(draft.folder)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b", "a\\b", "..", "", "C:x", "a\0b"]
)
def test_a_shard_name_that_leaves_the_folder_is_refused(draft: Draft, shard: str) -> None:
    draft.weight_map[NORM] = shard
    text = refusal(draft.write())
    assert f"{INDEX} names {shard!r}, which is not a plain file name" in text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"not json", "Expecting value"),
        (b"[]", "expected a JSON object, found list"),
        (b"{}", "weight_map is missing or empty"),
        (b'{"weight_map": {"a": 3}}', "weight_map gives no file name for a"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "key a occurs twice"),
    ],
)
def test_an_index_that_is_not_usable_is_refused(draft: Draft, raw: bytes, words: str) -> None:
    (draft.write() / INDEX).write_bytes(raw)
    text = refusal(draft.folder)
    assert f"1 problem: {INDEX} is not usable: " in text
    assert words in text


def test_a_folder_without_tensors_says_what_it_looked_for(draft: Draft) -> None:
    (draft.folder / "config.json").write_text(json.dumps(draft.config))
    assert f"neither {INDEX} nor model.safetensors is there" in refusal(draft.folder)


def test_a_single_file_that_the_index_does_not_name_is_ambiguous(draft: Draft) -> None:
    draft.write()
    draft.write_single()
    text = refusal(draft.folder)
    assert "1 problem: model.safetensors lies beside an index that does not name it" in text


def test_all_problems_come_in_one_error(draft: Draft) -> None:
    del draft.weight_map[NORM], draft.headers[SECOND][NORM]
    draft.headers[FIRST][ROUTER] = entry("BF16", (64, 8))
    draft.weight_map["extra"] = SECOND
    draft.headers[SECOND]["extra"] = entry("I64", (1,))
    draft.repack()
    text = refusal(draft.write())
    assert "3 problems" in text
    assert f"{NORM} is missing; extra is not a tensor of this model; {ROUTER} has shape" in text


def test_a_quantised_checkpoint_is_refused_by_its_config(draft: Draft) -> None:
    draft.config["quantization_config"] = {"quant_method": "fp8"}
    with pytest.raises(CheckpointError, match="quantization_config: unknown field"):
        Checkpoint.open(draft.write())


def test_a_layer_that_the_model_lacks_is_refused(draft: Draft) -> None:
    with pytest.raises(CheckpointError, match=r"no decoder layers \[-1, 3\]; the model has 0 to 2"):
        Checkpoint.open(draft.write(), layers=[0, 3, -1])


@pytest.mark.parametrize(
    ("tower", "field", "size"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "n_routed_experts", 10**9),
        ("text_config", "num_attention_heads", 10**9),
        ("text_config", "vocab_size", 2**23),
        ("vision_config", "num_hidden_layers", 1001),
        ("vision_config", "init_pos_emb_height", 10**6),
        ("vision_config", "patch_size", 10**6),
    ],
)
def test_a_size_beyond_belief_is_refused_before_anything_is_listed(
    draft: Draft, tower: str, field: str, size: int
) -> None:
    draft.config[tower] = {**draft.config[tower], field: size}
    words = rf"{tower}.{field}: at most \d+ is believed, found {size}"
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(draft.write())


def test_sizes_beyond_belief_come_in_one_error(draft: Draft) -> None:
    draft.config["vision_config"] = {**draft.config["vision_config"], "num_hidden_layers": 10**9}
    lies = {"num_hidden_layers": 10**9, "rope_theta": 10**400}
    draft.config["text_config"] = {**draft.config["text_config"], **lies}
    with pytest.raises(CheckpointError, match=r"3 problems: .*vision.*text.*text.*rope_theta"):
        Checkpoint.open(draft.write())


def test_experts_of_all_layers_are_bounded_together(draft: Draft) -> None:
    lies = {"num_hidden_layers": 1000, "n_routed_experts": 4096}
    draft.config["text_config"] = {**draft.config["text_config"], **lies}
    with pytest.raises(
        CheckpointError, match="layers 1000 x n_routed_experts 4096: at most 100000"
    ):
        Checkpoint.open(draft.write())


def test_layers_that_the_files_lack_are_told_in_a_short_line(draft: Draft) -> None:
    draft.config["text_config"] = {**draft.config["text_config"], "num_hidden_layers": 1000}
    text = refusal(draft.write())
    assert re.search(r"layers\.3\.self_attn\S+ is missing; .* and \d{5} more$", text)
    assert len(text) < 1000
