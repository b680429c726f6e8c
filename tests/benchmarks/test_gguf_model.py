"""A random model in llama.cpp's format, read back by a reader of its own."""

import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.cpu.gguf_file import Form
from benchmarks.cpu.gguf_model import list_tensors, write_random_model
from export.synthetic.configs import FULL_CONFIG
from runtime.config import DecoderConfig, KimiVLConfig

FULL = KimiVLConfig.from_fields(FULL_CONFIG).decoder
SMALL = replace(
    FULL,
    vocab_size=96,
    width=64,
    dense_width=160,
    expert_width=96,
    num_layers=3,
    num_heads=4,
    num_experts=8,
    experts_per_token=3,
    latent_rank=128,
    nope_size=64,
    rope_size=32,
    value_size=32,
)
BLOCK = {0: (1, 4), 2: (32, 18), 8: (32, 34)}  # numbers and bytes, by ggml_type
NUMBERS = {4: "<I", 6: "<f", 7: "<?"}


@dataclass
class Read:
    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]]  # axes as in the file, type, bytes


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:  # noqa: ANN401  # as many types as forms
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.take("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()


def read(path: Path) -> Read:
    reader = Reader(path.read_bytes())
    assert (reader.take("<4s"), reader.take("<I")) == (b"GGUF", 3)
    num_tensors, num_fields = reader.take("<Q"), reader.take("<Q")
    metadata = {}
    for _ in range(num_fields):
        key, kind = reader.text(), reader.take("<I")
        metadata[key] = reader.text() if kind == 8 else reader.take(NUMBERS[kind])
    infos = []
    for _ in range(num_tensors):
        name = reader.text()
        axes = tuple(reader.take("<Q") for _ in range(reader.take("<I")))
        infos.append((name, axes, reader.take("<I"), reader.take("<Q")))
    start = -(-reader.at // 32) * 32
    tensors, end = {}, start
    for name, axes, kind, offset in infos:
        values, size = BLOCK[kind]
        assert start + offset == end  # in order and without holes
        num_bytes = prod(axes) // values * size
        tensors[name] = (axes, kind, reader.data[end : end + num_bytes])
        end = -(-(end + num_bytes) // 32) * 32
    assert end == len(reader.data)
    return Read(metadata, tensors)


def dequantise(kind: int, data: bytes) -> NDArray[np.float32]:
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK[kind][1])
    scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    codes = blocks[:, 2:]
    if kind == 2:
        return scale * (np.hstack([codes & 15, codes >> 4]).astype(np.float32) - 8)
    return scale * codes.view(np.int8).astype(np.float32)


def small_model(folder: Path, form: Form = "q4_0", config: DecoderConfig = SMALL) -> Path:
    path = folder / "model.gguf"
    write_random_model(path, config, form)
    return path


def test_the_released_sizes_have_all_parameters_of_the_decoder() -> None:
    tensors = list(list_tensors(FULL, "q4_0"))
    assert sum(prod(tensor.info.shape) for tensor in tensors) == 15_960_108_544 + 1_664
    assert len({tensor.info.name for tensor in tensors}) == len(tensors)


def test_a_decoded_token_reads_the_active_weights_at_4_and_a_half_bits() -> None:
    matrices = [one.info for one in list_tensors(FULL, "q4_0") if one.info.form == "q4_0"]
    share = {"token_embd": 0.0, "_exps": 6 / 64}
    read_bytes = sum(
        info.size_bytes * next((part for key, part in share.items() if key in info.name), 1.0)
        for info in matrices
    )
    active = 27 * 13_762_560 + 69_206_016 + 26 * (6 * 8_650_752 + 17_301_504) + 335_544_320
    assert read_bytes == active * 4.5 / 8


def test_the_file_lists_the_fast_axis_first(tmp_path: Path) -> None:
    tensors = read(small_model(tmp_path)).tensors
    assert tensors["blk.0.ffn_gate.weight"][0] == (64, 160)
    assert tensors["blk.1.ffn_down_exps.weight"][0] == (96, 64, 8)
    assert tensors["blk.1.ffn_down_shexp.weight"][0] == (192, 64)
    assert tensors["blk.2.attn_k_b.weight"][0] == (64, 128, 4)
    assert tensors["blk.2.attn_v_b.weight"][0] == (128, 32, 4)


def test_the_metadata_asks_for_attention_over_the_latent_cache(tmp_path: Path) -> None:
    metadata = read(small_model(tmp_path)).metadata
    assert metadata["general.architecture"] == "deepseek2"
    assert metadata["deepseek2.attention.head_count_kv"] == 1
    assert metadata["deepseek2.attention.key_length"] == 128 + 32
    assert metadata["deepseek2.attention.key_length_mla"] == 64 + 32
    assert metadata["deepseek2.expert_gating_func"] == 2
    assert metadata["deepseek2.expert_weights_norm"] is True
    assert metadata["deepseek2.expert_weights_scale"] == pytest.approx(2.446)


@pytest.mark.parametrize(("form", "kind"), [("q4_0", 2), ("q8_0", 8)])
def test_matrices_keep_the_size_of_what_they_multiply(
    tmp_path: Path, form: Form, kind: int
) -> None:
    found = read(small_model(tmp_path, form)).tensors
    for name, fan_in in (("blk.0.ffn_down", 160), ("blk.1.ffn_up_exps", 64), ("output", 64)):
        _, stored, data = found[f"{name}.weight"]
        values = dequantise(stored, data)
        assert stored == kind
        assert values.std() == pytest.approx(fan_in**-0.5, rel=0.03)
        # Codes alone have a mean of -0.11 deviations in q4_0; n numbers give 1 / sqrt(n) by chance.
        assert abs(values.mean()) < 4 * values.std() / values.size**0.5


def test_no_code_of_q8_0_is_minus_128(tmp_path: Path) -> None:
    _, _, data = read(small_model(tmp_path, "q8_0")).tensors["blk.1.ffn_up_exps.weight"]
    codes = np.frombuffer(data, np.uint8).reshape(-1, 34)[:, 2:].view(np.int8)
    assert (codes.min(), codes.max()) == (-127, 127)


def test_norms_are_one_and_routers_are_random(tmp_path: Path) -> None:
    found = read(small_model(tmp_path)).tensors
    norm = np.frombuffer(found["blk.1.attn_kv_a_norm.weight"][2], np.float32)
    router = np.frombuffer(found["blk.1.ffn_gate_inp.weight"][2], np.float32)
    assert (norm == 1).all()
    assert router.std() == pytest.approx(64**-0.5, rel=0.15)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write_random_model(path, SMALL, "q4_0", seed=seed)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert len(first) == len(other)
    assert first != other


def test_a_row_that_is_no_whole_number_of_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_down\.weight: .* no whole q4_0 blocks"):
        small_model(tmp_path, config=replace(SMALL, dense_width=100))
    assert list(tmp_path.iterdir()) == []
