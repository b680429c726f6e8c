"""Parts of the benchmark of a card, on the CPU's kernels."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import kernels
from benchmarks.cpu import full_artifact
from benchmarks.gpu import card, parts
from benchmarks.gpu.ours import TEXT_TOKENS, Ours
from benchmarks.gpu.peer import Peer
from benchmarks.gpu.rows import Found, Wanted, decode_name
from benchmarks.gpu.rtx import ask_rtx
from export.synthetic.configs import FULL_CONFIG
from export.synthetic.folder import write_synthetic
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.cuda.provider import Provider
from runtime.errors import CapacityError, KimiVLError
from runtime.prompt.patches import ImageRule
from tests.executing_trt import HostDevice
from tests.oracles import torchvision_operators

HOST = Provider(name="CPUExecutionProvider", device_type="cpu", can_record=True)
FEW = Wanted(batches=(1, 3), depths=(0, 8), long_depths=(40,), prompts=(16,), repeats=2)
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


class Opened:
    """Opens targets on the CPU's kernels and notes their limits."""

    def __init__(self) -> None:
        self.limits: list[tuple[int, int, int]] = []

    def __call__(self, artifact: Artifact, target: str) -> CudaEngine:
        limits = artifact.target(target).limits
        self.limits.append((limits.max_slots, limits.max_tokens, limits.prefill_chunk))
        return CudaEngine(artifact, target, provider=HOST, device=HostDevice())


class NoMemory:
    """A card whose memory nobody uses."""

    used_bytes = 0


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    there = Opened()
    monkeypatch.setattr(parts, "open_engine", there)
    monkeypatch.setattr(card.Memory, "load", NoMemory)
    return there


def gathered(part: parts.Part, asked: parts.Asked) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in part(asked):
        for section, values in each.items():
            assert not found.get(section, {}).keys() & values.keys()
            found.setdefault(section, {}).update(values)
    return found


def test_our_parts_take_every_row_once_on_engines_just_large_enough(
    for_cuda: Path, opened: Opened
) -> None:
    before = (for_cuda / "manifest.json").read_bytes()
    asked = parts.Asked(artifact=for_cuda, wanted=FEW, prefill_chunk=16)
    rows: Counter[str] = Counter()
    for name in ("one_slot", "batches", "long_contexts"):
        found = gathered(parts.PARTS[name], asked)
        assert set(found) == {"samples", "memory_bytes"}
        rows.update(list(found["samples"]))
    pairs = [(1, 0), (3, 0), (1, 8), (3, 8), (1, 40)]
    assert rows == Counter(["prompt_16", *(decode_name(*pair) for pair in pairs)])
    assert opened.limits == [(1, 40, 16), (3, 40, 16), (1, 72, 16)]
    assert (for_cuda / "manifest.json").read_bytes() == before


def test_no_engine_is_opened_for_no_rows(for_cuda: Path, opened: Opened) -> None:
    wanted = Wanted(batches=(1,), depths=(), long_depths=(), prompts=(), repeats=1)
    asked = parts.Asked(artifact=for_cuda, wanted=wanted, prefill_chunk=16)
    for name in ("one_slot", "batches", "long_contexts"):
        assert gathered(parts.PARTS[name], asked) == {}
    assert opened.limits == []


def test_a_depth_over_what_the_model_takes_is_left_out(
    for_cuda: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(ours: Ours, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        raise CapacityError(f"{depth + tokens} tokens of {batch}")

    monkeypatch.setattr(Ours, "decode", too_long)
    asked = parts.Asked(artifact=for_cuda, wanted=FEW, prefill_chunk=16)
    found = gathered(parts.measure_one_slot, asked)
    assert found["left_out"] == {
        decode_name(1, 0): "32 tokens of 1",
        "decode_batch_1_depth_8": "40 tokens of 1",
    }
    assert len(found["samples"]["prompt_16"]) == 2


def test_an_image_is_named_after_its_side_and_the_largest_is_left_out_where_it_is_shrunk(
    for_cuda: Path, opened: Opened
) -> None:
    asked = parts.Asked(artifact=for_cuda, wanted=FEW, prefill_chunk=16)
    limit = ImageRule.load(for_cuda / "model").in_token_limit
    side = int(limit**0.5) // 2 * 2
    found = gathered(parts.measure_image, asked)
    assert found["left_out"] == {"image_1792": f"the artifact shrinks images to {limit} patches"}
    ((name, samples),) = found["samples"].items()
    assert name == f"image_{14 * side}"
    assert len(samples) == FEW.repeats
    assert all(0 < one["encode_s"] < one["first_token_s"] for one in samples)
    assert opened.limits == [(1, side**2 // 4 + TEXT_TOKENS, 16)]


def test_the_benchmarks_own_artifact_leaves_the_largest_image_as_it_is(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "model", shape="tiny")
    full_artifact._set_image_limit(folder, parts.LARGEST_IMAGE)
    assert ImageRule.load(folder).grid(1792, 1792) == (parts.LARGEST_SIDE, parts.LARGEST_SIDE)


def test_our_side_answers_an_image_and_decodes_on_any_engine(artifact: Path) -> None:
    engine = CpuEngine(Artifact.open(artifact), num_threads=1)
    ours = Ours(engine, vocab_size=engine.vocab_size)
    times = ours.first_token(8, 588)
    assert 0 < times["encode_s"] < times["first_token_s"]
    assert len(ours.decode(TEXT_TOKENS, 3, batch=2)) == 3
    assert ours.prefill(40) > 0


def test_what_is_said_of_plans_is_written_down_or_that_there_are_none(artifact: Path) -> None:
    asked = parts.Asked(artifact=artifact, wanted=FEW, prefill_chunk=16)
    found = list(parts.ask_tensorrt(asked))
    assert found == [{"left_out": {"all": "the artifact has no target of TensorRT"}}]


def test_every_step_of_tensorrt_rtx_tells_its_outcome() -> None:
    pytest.importorskip("tensorrt_rtx")
    said = {name: one for each in ask_rtx() for name, one in each.items()}
    assert list(said) == [
        "import",
        "runtime",
        "plan_for_this_card",
        "plan_for_rtx_cards",
        "engine_for_this_card",
        "engine_for_rtx_cards",
        "context",
    ]
    assert said["plan_for_rtx_cards"]["outcome"] == "done"
    if not torch.cuda.is_available():
        assert said["plan_for_this_card"]["outcome"] == "nothing came of it"
        assert "CUDA driver" in said["plan_for_this_card"]["logged"][-1]
        missing = "RuntimeError: not tried without plan_for_this_card"
        assert said["engine_for_this_card"]["outcome"] == missing


def test_checks_of_kernels_that_fail_are_written_down_and_fail_the_part(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(words: list[str]) -> int:
        Path(words[1]).write_text('{"failures": ["experts bf16"]}')
        return 1

    monkeypatch.setattr(kernels, "main", checked)
    monkeypatch.setattr(parts, "reason_to_leave_out", lambda: None)
    asked = parts.Asked(artifact=artifact, wanted=FEW, prefill_chunk=16)
    found: list[Found] = []
    with pytest.raises(KimiVLError, match="experts bf16"):
        found.extend(parts.check_kernels(asked))
    assert next(parts.check_kernels(asked)) == {"reports": {"failures": ["experts bf16"]}}


def test_an_artifact_of_other_sizes_is_not_compared_with_the_peer(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "reason_to_leave_out", lambda: None)
    asked = parts.Asked(artifact=artifact, wanted=FEW, prefill_chunk=16)
    (found,) = parts.measure_peer("eager")(asked)
    assert found["left_out"]["all"].startswith("the peer has the released sizes")


def test_the_released_sizes_are_compared_with_the_peer_but_not_without_some_layers(
    artifact: Path, tmp_path: Path
) -> None:
    opened = Artifact.open(artifact)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(FULL_CONFIG))
    count = FULL_CONFIG["text_config"]["num_hidden_layers"]
    whole = replace(opened.manifest, layers=tuple(range(count)))
    assert parts._other_sizes(replace(opened, folder=tmp_path, manifest=whole)) is None
    assert parts._other_sizes(replace(opened, folder=tmp_path)) is not None


def test_the_peer_decodes_behind_a_cache_and_runs_a_prompt() -> None:
    torchvision_operators.declare()
    peer = Peer("eager", TINY, place="cpu")
    calls: list[int] = []
    peer.warm_up(lambda: calls.append(len(calls)))
    assert calls == [0, 1, 2]
    seconds = peer.decode(10, 4, batch=2)
    assert len(seconds) == 4
    assert np.min(seconds) > 0
    assert peer.prefill(12) > 0


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_every_row_of_the_compiled_peer_is_compiled_for_its_own_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(sum(isinstance(one, torch.SymInt) for one in inputs))
        return graph.forward

    original = torch.compile

    def compile_for_test(model: Any, *, mode: str, dynamic: bool) -> Any:  # noqa: ANN401
        assert mode == "reduce-overhead"
        return original(model, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile_for_test)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    torchvision_operators.declare()
    peer = Peer("compiled", TINY, place="cpu")
    counts = []
    for depth in (0, 2, 4):
        before = len(compiled)
        peer.warm_up(partial(peer.decode, depth, 2))
        counts.append(len(compiled) - before)
        peer.decode(depth, 2)
        assert len(compiled) - before == counts[-1]
    assert counts[0] > 0
    assert len(set(counts)) == 1
    assert not any(compiled)
