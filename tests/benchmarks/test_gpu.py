"""The benchmark of a card, as far as it needs none: rows, figures, what is said without one."""

import ctypes
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from benchmarks.gpu import parts, run
from benchmarks.gpu.card import Memory, describe_card
from benchmarks.gpu.figures import image_seconds, ratios, speeds
from benchmarks.gpu.results import Results
from benchmarks.gpu.rows import DECODED, Found, Wanted, decode_name, measure, works_of
from runtime.cuda import Cuda
from runtime.errors import CapacityError, NumericError, UnsupportedError

FEW = Wanted(batches=(1, 4), depths=(0, 100), long_depths=(500,), prompts=(512,), repeats=2)


def load() -> Memory:
    return Memory(Cuda(FakeCuda()))


def measured(side: "Scripted") -> list[Found]:
    return list(measure(works_of(side, FEW), FEW.repeats, warm_up=lambda work: work()))


def samples_of(found: list[Found]) -> dict[str, Any]:
    return {name: one for each in found for name, one in each.get("samples", {}).items()}


class Scripted:
    """Takes a known time for a step, and has no room for some."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def decode(self, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        self.asked.append((batch, depth, tokens))
        if batch * depth > 300 and batch > 1:
            raise CapacityError("no room:\n 400 tokens")
        if depth == 500:
            raise NumericError("not finite")
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
    found = measured(side)
    fine = [(1, 0), (4, 0), (1, 100)]
    repeated = [(*pair, DECODED) for pair in fine for _ in range(3)]
    assert [one for one in side.asked if one[:2] in fine] == repeated
    assert list(samples_of(found)) == [*(decode_name(*pair) for pair in fine), "prompt_512"]
    assert {len(one) for one in samples_of(found).values()} == {2}


def test_a_row_that_fails_is_left_out_with_what_was_said_and_the_rest_goes_on() -> None:
    found = measured(Scripted())
    assert [one["left_out"] for one in found if "left_out" in one] == [
        {"decode_batch_4_depth_100": "no room: 400 tokens"},
        {"decode_batch_1_depth_500": "not finite"},
    ]
    assert list(found[-1]["samples"]) == ["prompt_512"]


def test_a_row_is_given_before_the_next_one_is_run() -> None:
    side = Scripted()
    next(measure(works_of(side, FEW), FEW.repeats, warm_up=lambda work: work()))
    assert side.asked == [(1, 0, DECODED)] * 3


def test_a_pair_of_batch_and_depth_that_is_asked_for_twice_is_run_once() -> None:
    wanted = Wanted(batches=(1,), depths=(0, 64), long_depths=(64,))
    assert list(wanted.decodes()) == [(1, 0), (1, 64)]


def test_figures_are_tokens_a_second_of_all_slots_and_medians_of_steps() -> None:
    assert speeds(samples_of(measured(Scripted()))) == {
        "decode_tokens_per_s": {"batch_1": 500.0, "batch_4": 500.0},
        "decode_behind_tokens_per_s": {"batch_1_depth_100": 500.0},
        "prompt_tokens_per_s": {"tokens_512": 4000.0},
    }


def test_seconds_of_an_image_are_medians_of_its_samples() -> None:
    times = [{"encode_s": one, "first_token_s": one + 1} for one in (0.1, 0.9, 0.2)]
    samples: dict[str, list[Any]] = {"image_1792": times, decode_name(1, 0): [[0.1]]}
    assert image_seconds(samples) == {"image_1792": {"encode_s": 0.2, "first_token_s": 1.2}}


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


def run_parts(
    monkeypatch: pytest.MonkeyPatch, results: Path, artifact: Path, **made: parts.Part
) -> int:
    """Run a whole benchmark of some parts in this process."""

    def in_this_process(name: str, given: list[str]) -> int:
        return run.main([*given, "--only", name], load_memory=load, results=results)

    monkeypatch.setattr(run, "PARTS", made)
    monkeypatch.setattr(run, "_start_part", in_this_process)
    words = ["--artifact", str(artifact), "--batches", "1,2", "--repeats", "3", "--depths", ""]
    return run.main(words, load_memory=load, results=results)


def taking(seconds: float) -> parts.Part:
    def part(asked: parts.Asked) -> Iterator[Found]:
        assert asked.wanted.batches == (1, 2)
        assert asked.wanted.depths == ()
        yield {"samples": {decode_name(1, 0): [[seconds]] * asked.wanted.repeats}}

    return part


def failing(asked: parts.Asked) -> Iterator[Found]:
    yield {"samples": {"prompt_512": [0.5]}}
    raise CapacityError(f"no room for {asked.wanted.repeats}")


def leaving_out(asked: parts.Asked) -> Iterator[Found]:
    yield {"left_out": {decode_name(1, 0): f"no room for {asked.wanted.repeats}"}}


def test_parts_add_to_the_results_and_the_summary_reduces_them(
    for_cuda: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.json"
    made = {"one_slot": taking(0.02), "eager": taking(0.04)}
    assert run_parts(monkeypatch, results, for_cuda, **made) == 0
    found = json.loads(results.read_text())
    assert found["card"]["name"] == "Test H100"
    assert found["asked"]["recipe"] == "fp32"
    assert found["decode_tokens_per_s"] == {"batch_1": 50.0}
    assert found["peers"]["eager"]["decode_tokens_per_s"] == {"batch_1": 25.0}
    assert found["ratio_to_best_peer"] == {"decode_batch_1": 2.0}
    assert found["failed"] == []
    assert json.loads(capsys.readouterr().out)["ratio_to_best_peer"] == {"decode_batch_1": 2.0}


def test_what_a_part_found_before_it_failed_stays(
    for_cuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.json"
    assert run_parts(monkeypatch, results, for_cuda, one_slot=failing, batches=taking(0.02)) == 1
    found = json.loads(results.read_text())
    assert found["failed"] == ["one_slot"]
    assert found["left_out"] == {"one_slot": {"all": "no room for 3"}}
    assert found["prompt_tokens_per_s"] == {"tokens_512": 1024.0}
    assert found["decode_tokens_per_s"] == {"batch_1": 50.0}


@pytest.mark.parametrize("second", [failing, leaving_out])
def test_a_run_does_not_take_rows_of_the_one_before_for_its_own(
    for_cuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: parts.Part
) -> None:
    results = tmp_path / "results.json"
    results.write_text('{"remark": "kept"}')
    run_parts(monkeypatch, results, for_cuda, one_slot=taking(0.02), eager=taking(0.04))
    run_parts(monkeypatch, results, for_cuda, one_slot=second)
    found = json.loads(results.read_text())
    assert found["decode_tokens_per_s"] == {}
    assert found["ratio_to_best_peer"] == {}
    assert found["peers"] == {}
    assert found["remark"] == "kept"


def test_a_part_on_its_own_forgets_what_it_found_before_and_no_other_part(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    file, card = Results(path), {"card": {"name": "A"}}
    file.begin(card)
    for part in ("one_slot", "eager"):
        file.add(part, {"samples": {"prompt_512": [0.5]}, "left_out": {"x": "y"}})
    file.finish(failed=[])
    file.begin_part("one_slot", card)
    found = json.loads(path.read_text())
    assert set(found["samples"]) == set(found["left_out"]) == {"eager"}
    assert "ratio_to_best_peer" not in found
    file.begin_part("one_slot", {"card": {"name": "B"}})
    assert json.loads(path.read_text()) == {"card": {"name": "B"}}


def test_an_artifact_that_was_not_built_for_the_target_ends_in_one_line(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    words = ["--artifact", str(artifact)]
    assert run.main(words, load_memory=load, results=results) == 1
    assert "not built for target 'cuda'" in capsys.readouterr().err
    assert not results.exists()


def test_the_default_artifact_is_written_wholly_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, limits = tmp_path / "artifact", []

    def write(place: Path, *others: object, in_token_limit: int, **more: object) -> None:
        place.mkdir()
        limits.append(in_token_limit)
        if len(limits) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_full_artifact", write)
    with pytest.raises(KeyboardInterrupt):
        run.write_default(folder)
    assert not folder.exists()
    for _ in range(2):
        run.write_default(folder)
    assert limits == [128**2] * 2
    assert list(tmp_path.iterdir()) == [folder]
    monkeypatch.setattr(run, "DEFAULT_ARTIFACT", folder)  # without a manifest
    assert run.main([], load_memory=load, results=tmp_path / "results.json") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
