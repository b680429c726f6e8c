import hashlib
import json
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoint.expected import expected_tensors
from export.checkpoint.reader import Checkpoint
from export.synthetic.configs import FULL_CONFIG
from runtime.config import KimiVLConfig
from runtime.errors import CheckpointError
from tests.export.checkpoint_files import FIRST, NORM, ROUTER, SECOND, Draft, shard_bytes

STATUS = Path("/proc/self/status")
BIAS = "language_model.model.layers.1.mlp.gate.e_score_correction_bias"


def put(path: Path, name: str, data: bytes) -> None:
    """Overwrite one tensor's bytes in place."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    begin, end = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    assert end - begin == len(data)
    start = 8 + length + begin
    path.write_bytes(raw[:start] + data + raw[start + len(data) :])


VALUES = [1.0, 2.0, 3.0, 4.0, 0.5, -1.5, 0.25, -8.0]


def bits(dtype: str) -> bytes:
    values = np.array(VALUES, dtype=np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    if dtype == "F8_E4M3":  # sign, 4 exponent bits with bias 7, 3 mantissa bits
        return bytes([0x38, 0x40, 0x44, 0x48, 0x30, 0xBC, 0x28, 0xD0])
    if dtype == "F8_E5M2":  # sign, 5 exponent bits with bias 15, 2 mantissa bits
        return bytes([0x3C, 0x40, 0x42, 0x44, 0x38, 0xBE, 0x34, 0xC8])
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ("BF16", torch.bfloat16),
        ("F16", torch.float16),
        ("F32", torch.float32),
        ("F64", torch.float64),
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
    ],
)
def test_every_float_dtype_is_read_as_it_is_stored(
    tmp_path: Path, stored: str, dtype: torch.dtype
) -> None:
    draft, name = Draft(tmp_path), BIAS
    draft.headers[FIRST][name]["dtype"] = stored
    others = {key: value for key, value in draft.headers[FIRST].items() if key != name}
    draft.headers[FIRST] = {name: draft.headers[FIRST][name], **others}
    draft.repack()
    put(draft.write() / FIRST, name, bits(stored))
    checkpoint = Checkpoint.open(tmp_path)
    tensor = checkpoint.tensor(name)
    assert checkpoint.dtype(name) == tensor.dtype == dtype
    assert checkpoint.shape(name) == tuple(tensor.shape) == (8,)
    assert tensor.float().tolist() == VALUES


def test_a_tensor_comes_from_its_own_place_in_its_own_shard(tmp_path: Path) -> None:
    draft = Draft(tmp_path)
    folder = draft.write()
    put(folder / FIRST, ROUTER, np.arange(512, dtype="<u2").tobytes())
    put(folder / SECOND, NORM, np.arange(600, 664, dtype="<u2").tobytes())
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensor(ROUTER).view(torch.int16).flatten().tolist() == list(range(512))
    assert checkpoint.tensor(NORM).view(torch.int16).tolist() == list(range(600, 664))
    assert checkpoint.names == tuple(expected_tensors(checkpoint.config))


def test_a_single_file_is_read_like_shards(tmp_path: Path) -> None:
    draft = Draft(tmp_path)
    put(draft.write_single() / "model.safetensors", ROUTER, bytes(range(256)) * 4)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tensor(ROUTER).view(torch.uint8).flatten().tolist() == [*range(256)] * 4
    assert checkpoint.identity()["index_sha256"] is None


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    folder = Draft(tmp_path).write()
    checkpoint = Checkpoint.open(folder)
    checkpoint.tensor(NORM).fill_(7)
    assert checkpoint.tensor(NORM).float().abs().max() == 0


def test_the_cache_layout_of_the_hub_with_its_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(Draft(blobs).write().iterdir()):
        path.rename(blobs / f"{number:x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:x}")
    assert Checkpoint.open(snapshot).tensor(NORM).shape == (64,)


def test_a_file_that_vanishes_after_opening_is_one_clear_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(Draft(tmp_path).write())
    (tmp_path / SECOND).unlink()
    with pytest.raises(CheckpointError, match=rf"{SECOND}: {NORM} cannot be read: .*change"):
        checkpoint.tensor(NORM)


def test_an_unknown_name_is_a_key_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(Draft(tmp_path).write())
    with pytest.raises(KeyError, match="nonsense"):
        checkpoint.tensor("nonsense")


def test_shards_of_unread_layers_may_be_absent(tmp_path: Path) -> None:
    draft = Draft(tmp_path)
    draft.weight_map[NORM] = FIRST
    draft.headers[FIRST][NORM] = draft.headers[SECOND].pop(NORM)
    draft.repack()
    (draft.write() / SECOND).unlink()
    checkpoint = Checkpoint.open(tmp_path, layers=[0, 1])
    left_out = set(draft.weight_map) - set(checkpoint.names)
    assert left_out == set(draft.headers[SECOND])
    assert checkpoint.tensor(ROUTER).shape == (8, 64)


def test_text_files_are_those_that_exist(tmp_path: Path) -> None:
    folder = Draft(tmp_path).write()
    for name in ("tiktoken.model", "chat_template.jinja", "modeling_kimi_vl.py"):
        (folder / name).write_text("x")
    names = [path.name for path in Checkpoint.open(folder).text_files()]
    assert names == ["config.json", "tiktoken.model", "chat_template.jinja"]


def test_the_identity_hashes_config_index_and_headers(tmp_path: Path) -> None:
    folder = Draft(tmp_path).write()
    identity = Checkpoint.open(folder).identity()

    def sha256(raw: bytes) -> str:
        return hashlib.sha256(raw).hexdigest()

    raw = (folder / SECOND).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    index = folder / "model.safetensors.index.json"
    assert identity["config_sha256"] == sha256((folder / "config.json").read_bytes())
    assert identity["index_sha256"] == sha256(index.read_bytes())
    shard = identity["shards"][1]
    assert shard["name"] == SECOND
    assert shard["size_bytes"] == len(raw)
    assert shard["header_sha256"] == sha256(raw[: 8 + length])
    assert json.loads(json.dumps(identity)) == identity


def test_other_values_under_the_same_headers_have_another_identity(tmp_path: Path) -> None:
    folder = Draft(tmp_path).write()
    before = Checkpoint.open(folder).identity()
    put(folder / FIRST, "language_model.model.embed_tokens.weight", b"\1" * (756 * 64 * 2))
    after = Checkpoint.open(folder).identity()
    assert before["shards"][0]["header_sha256"] == after["shards"][0]["header_sha256"]
    assert before != after


def test_a_copy_in_another_place_has_the_same_identity(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = Draft(tmp_path / "a").write()
    shutil.copytree(folder, tmp_path / "b")
    assert Checkpoint.open(folder).identity() == Checkpoint.open(tmp_path / "b").identity()


def write_sparse_release(folder: Path) -> None:
    """Lay out the whole release, 32.8 GB of zeros that take no space on the disk."""
    (folder / "config.json").write_text(json.dumps(FULL_CONFIG))
    shards: list[dict[str, object]] = [{}]
    end, weight_map = 0, {}
    for name, shape in expected_tensors(KimiVLConfig.from_fields(FULL_CONFIG)).items():
        begin, end = end, end + 2 * int(np.prod(shape))
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        weight_map[name] = f"model-{len(shards)}.safetensors"
        if end > 4_500_000_000:
            finish(folder / weight_map[name], shards[-1], end)
            shards.append({})
            end = 0
    finish(folder / f"model-{len(shards)}.safetensors", shards[-1], end)
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def finish(path: Path, header: dict[str, object], data_bytes: int) -> None:
    raw = shard_bytes(json.dumps(header).encode(), b"")
    with path.open("wb") as stream:
        stream.write(raw)
        stream.truncate(len(raw) + data_bytes)


def anonymous_bytes() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="memory is measured through /proc")
def test_the_release_opens_in_seconds_and_reading_it_keeps_nothing_in_memory(
    tmp_path: Path,
) -> None:
    write_sparse_release(tmp_path)
    start = time.perf_counter()
    checkpoint = Checkpoint.open(tmp_path)
    assert time.perf_counter() - start < 5  # about 0.1 s; reading 32.8 GB takes far longer
    assert len(checkpoint.names) == 5652
    before = anonymous_bytes()
    tensor = checkpoint.tensor("language_model.lm_head.weight")
    assert tensor[163839].float().abs().sum() == 0
    assert tensor.nbytes == 671_088_640
    assert anonymous_bytes() - before < 50_000_000
