"""The benchmark of a card, as far as it needs none: rows, figures, what is said without one."""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from benchmarks.gpu import parts, run
from benchmarks.gpu.card import Memory, describe_card
from benchmarks.gpu.ours import TEXT_TOKENS, Ours
from benchmarks.gpu.peer import Peer
from benchmarks.gpu.rows import DECODED, Wanted, decode_name, figures, measure, ratios
from runtime.artifact.folder import Artifact
from runtime.cuda import Cuda
from runtime.engine.onnx_engine import OnnxEngine
from runtime.errors import CapacityError, UnsupportedError

FEW = Wanted(batches=(1, 4), depths=(0, 100), long_depths=(500,), repeats=2)
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 128,
}


class Scripted:
    """Takes a known time for a step, and has no room for some."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def decode(self, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        self.asked.append((batch, depth, tokens))
        if batch * depth > 300 and batch > 1:
            raise CapacityError("no room:\n 400 tokens")
        return [0.001 * batch, 0.002 * batch, 0.1]

    def prefill(self, tokens: int) -> float:
        return tokens / 4000


class Pointer(Protocol):
    """What `ctypes.byref` gives."""

    _obj: ctypes.c_size_t


def tell_memory(free: Pointer, total: Pointer) -> int:
    free._obj.value, total._obj.value = 3, 8
    return 0


def tell_name(name: "ctypes.Array[ctypes.c_char]", *others: object) -> int:
    name.value = b"Test H100"
    return 0


class FakeCuda:
    """A driver with one card, of which three of eight bytes are free."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        known: dict[str, Callable[..., int]] = {
            "cuMemGetInfo_v2": tell_memory,
            "cuDeviceGetName": tell_name,
        }
        return known.get(name, lambda *arguments: 0)


def test_rows_are_taken_by_rising_depth_and_each_is_run_once_before_it_counts() -> None:
    side = Scripted()
    heard: list[str] = []
    found = measure(side, FEW, prompts=(512,), says=heard.append)
    pairs = [(1, 0), (4, 0), (1, 100), (1, 500)]
    repeated = [(*pair, DECODED) for pair in pairs for _ in range(3)]
    assert [one for one in side.asked if one != (4, 100, DECODED)] == repeated
    assert list(found.samples) == [*(decode_name(*pair) for pair in pairs), "prompt_512"]
    assert {len(one) for one in found.samples.values()} == {2}
    assert len(heard) == 6


def test_a_row_that_does_not_fit_is_left_out_with_what_was_said_and_the_rest_goes_on() -> None:
    found = measure(Scripted(), FEW, prompts=(512,), says=lambda text: None)
    assert found.left_out == {"decode_batch_4_depth_100": "no room: 400 tokens"}


def test_figures_are_tokens_a_second_of_all_slots_and_medians_of_steps() -> None:
    found = figures(measure(Scripted(), FEW, prompts=(512,), says=lambda text: None).samples)
    assert found == {
        "decode_tokens_per_s": {"batch_1": 500.0, "batch_4": 500.0},
        "decode_behind_tokens_per_s": {"batch_1_depth_100": 500.0, "batch_1_depth_500": 500.0},
        "prompt_tokens_per_s": {"tokens_512": 4000.0},
    }


def test_the_ratio_is_to_the_fastest_peer_of_a_row() -> None:
    ours = {
        "decode_tokens_per_s": {"batch_1": 300.0, "batch_8": 900.0},
        "decode_behind_tokens_per_s": {"batch_1_depth_8192": 200.0},
    }
    slow = {"decode_tokens_per_s": {"batch_1": 20.0, "batch_8": 90.0}}
    fast = {
        "decode_tokens_per_s": {"batch_1": 100.0},
        "decode_behind_tokens_per_s": {"batch_1_depth_8192": 400.0},
    }
    assert ratios(ours, [slow, fast]) == {
        "decode_batch_1": 3.0,
        "decode_batch_8": 10.0,
        "decode_batch_1_depth_8192": 0.5,
    }
    assert ratios(ours, []) == {}


def test_without_a_card_the_command_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def no_card() -> Memory:
        raise UnsupportedError("no CUDA driver: libcuda.so.1 is not here")

    results = tmp_path / "results.json"
    assert run.main([], load_memory=no_card, results=results) == 1
    said = capsys.readouterr()
    assert said.err == "no card to measure: no CUDA driver: libcuda.so.1 is not here\n"
    assert said.out == ""
    assert not results.exists()


def test_the_card_and_its_memory_are_named(tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module  580.95.05  Release Build\n")
    memory = Memory(Cuda(FakeCuda()))
    assert (memory.used_bytes, memory.total_bytes) == (5, 8)
    card = describe_card(memory, driver)
    assert (card.name, card.memory_bytes, card.driver) == ("Test H100", 8, "580.95.05")
    assert describe_card(memory, tmp_path / "none").driver == "unknown"


def test_parts_add_to_the_results_and_the_summary_reduces_them(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.json"
    words = ["--artifact", str(artifact), "--batches", "1,2", "--repeats", "3"]
    seen: list[parts.Asked] = []

    def part(asked: parts.Asked) -> dict[str, Any]:
        seen.append(asked)
        return {"samples": {"ours": {decode_name(1, 0): [[0.01], [0.03]]}}}

    def other(asked: parts.Asked) -> dict[str, Any]:
        return {"samples": {"eager": {decode_name(1, 0): [[0.04]]}}}

    monkeypatch.setattr(run, "PARTS", {"ours": part, "eager": other})

    def in_this_process(name: str, given: list[str]) -> int:
        return run.main([*given, "--only", name], load_memory=load, results=results)

    def load() -> Memory:
        return Memory(Cuda(FakeCuda()))

    monkeypatch.setattr(run, "_run_part", in_this_process)
    assert run.main(words, load_memory=load, results=results) == 0
    assert (seen[0].wanted.batches, seen[0].wanted.repeats) == ((1, 2), 3)
    found = json.loads(results.read_text())
    assert found["card"]["name"] == "Test H100"
    assert found["asked"]["recipe"] == "fp32"
    assert found["decode_tokens_per_s"] == {"batch_1": 50.0}
    assert found["ratio_to_best_peer"] == {"decode_batch_1": 2.0}
    assert found["failed"] == []
    assert json.loads(capsys.readouterr().out)["ratio_to_best_peer"] == {"decode_batch_1": 2.0}


def test_our_side_answers_an_image_and_decodes_on_any_engine(artifact: Path) -> None:
    engine = OnnxEngine(Artifact.open(artifact), num_threads=1)
    ours = Ours(engine, vocab_size=engine.vocab_size)
    times = ours.first_token(8, 588)
    assert 0 < times["encode_s"] < times["first_token_s"]
    assert len(ours.decode(TEXT_TOKENS, 3, batch=2)) == 3
    assert ours.prefill(40) > 0


def test_what_is_said_of_plans_is_written_down_or_that_there_are_none(artifact: Path) -> None:
    asked = parts.Asked(artifact=artifact, wanted=FEW, prefill_chunk=16)
    left_out = parts.ask_tensorrt(asked)["left_out"]
    assert left_out["tensorrt"]["all"] == "the artifact has no target of TensorRT"
    assert parts.describe(asked)["layers"] > 1


def test_the_peer_decodes_behind_a_cache_and_runs_a_prompt() -> None:
    peer = Peer("eager", TINY, place="cpu")
    seconds = peer.decode(10, 4, batch=2)
    assert len(seconds) == 4
    assert np.min(seconds) > 0
    assert peer.prefill(12) > 0
