"""The driver of llama.cpp: what is asked and what is told when it ends; the real one if built."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cpu.gguf_model import write_random_model
from benchmarks.cpu.llama_cpp import FOLDER, LlamaCpp, main
from export.synthetic.configs import FULL_CONFIG
from runtime.config import KimiVLConfig
from runtime.errors import KimiVLError

PRETENDED = f"""#!{sys.executable}
import json, os, sys
def answer(**fields):
    print(json.dumps(fields), flush=True)
if sys.argv[1].endswith("broken.gguf"):
    sys.exit(3)
answer(ggml="1.2.3", system=os.environ["GLIBC_TUNABLES"])
for line in sys.stdin:
    verb, tokens, depth = line.split()
    if verb == "prefill":
        answer(seconds=[int(tokens) + int(depth) / 1000])
    elif int(depth) > int(sys.argv[5]):
        answer(error="depth or tokens beyond the cache")
    else:
        answer(seconds=[float(depth)] * int(tokens))
"""
SMALL = replace(
    KimiVLConfig.from_fields(FULL_CONFIG).decoder,
    vocab_size=1024,
    width=256,
    dense_width=512,
    expert_width=128,
    num_heads=4,
    num_experts=8,
    experts_per_token=3,
    latent_rank=64,
    nope_size=64,
    rope_size=32,
    value_size=64,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program = tmp_path / "llama_driver"
    program.write_text(PRETENDED)
    program.chmod(0o755)
    return tmp_path


def test_a_measurement_is_what_the_process_answers(folder: Path) -> None:
    with LlamaCpp.open(folder / "model.gguf", folder=folder, max_depth=64) as llama:
        assert llama.decode(64, 3) == [64.0] * 3
        assert llama.prefill(512) == 512.0
        assert llama.prefill(5, depth=8) == 5.008
        assert llama.ggml_version == "1.2.3"
        assert "hugetlb=1" in llama.cpu_features


def test_a_refused_measurement_is_an_error_and_the_next_one_works(folder: Path) -> None:
    with LlamaCpp.open(folder / "model.gguf", folder=folder, max_depth=64) as llama:
        with pytest.raises(KimiVLError, match=r"model\.gguf: depth or tokens beyond the cache"):
            llama.decode(65, 1)
        assert llama.decode(7, 1) == [7.0]


def test_a_process_that_ends_is_named_with_its_status(folder: Path) -> None:
    with pytest.raises(KimiVLError, match=r"broken\.gguf: llama\.cpp ended with status 3"):
        LlamaCpp.open(folder / "broken.gguf", folder=folder)


def test_a_closed_process_measures_no_more(folder: Path) -> None:
    llama = LlamaCpp.open(folder / "model.gguf", folder=folder)
    llama.close()
    with pytest.raises(KimiVLError, match=r"llama\.cpp is closed"):
        llama.decode(0, 1)


def test_a_missing_driver_is_told_with_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(KimiVLError, match=r"run python -m benchmarks\.cpu\.llama_cpp build"):
        LlamaCpp.open(tmp_path / "model.gguf", folder=tmp_path)


def test_the_state_of_an_older_model_is_not_taken(folder: Path) -> None:
    model, state = folder / "model.gguf", folder / "model.64.fa1.state"
    for path in (state, model):
        path.touch()
    os.utime(state, (1, 1))
    LlamaCpp.open(model, folder=folder, max_depth=64).close()
    assert not state.exists()


def test_unknown_words_print_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guess"]) == 2
    assert "python -m benchmarks.cpu.llama_cpp build" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "llama_driver").exists(), reason="llama.cpp is not built")
@pytest.mark.parametrize("flash_attention", [True, False])
def test_the_real_llama_cpp_decodes_at_any_depth_in_any_order(
    tmp_path: Path, flash_attention: bool
) -> None:
    model = tmp_path / "small.gguf"
    write_random_model(model, SMALL, "q4_0")
    for _ in range(2):  # the second process finds the state of the first
        with LlamaCpp.open(
            model, threads=1, flash_attention=flash_attention, max_depth=600
        ) as llama:
            counts = [len(llama.decode(depth, 3)) for depth in (0, 600, 7, 300, 600)]
            assert counts == [3] * 5
            assert llama.prefill(20, depth=100) > 0
            with pytest.raises(KimiVLError, match="beyond the cache"):
                llama.decode(601, 1)
    assert len(list(tmp_path.glob("small.600.fa?.state"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "llama_driver").exists(), reason="llama.cpp is not built")
def test_a_cache_that_was_filled_in_part_is_filled_on(tmp_path: Path) -> None:
    model, state = tmp_path / "small.gguf", tmp_path / "small.1100.fa1.state"
    write_random_model(model, SMALL, "q4_0")
    with LlamaCpp.open(model, threads=1, max_depth=600) as llama:
        llama.decode(600, 1)
    in_part = (tmp_path / "small.600.fa1.state").rename(state).stat().st_size
    with LlamaCpp.open(model, threads=1, max_depth=1100) as llama:
        assert len(llama.decode(1100, 2)) == 2
    assert state.stat().st_size == pytest.approx(in_part * 1100 / 600, rel=0.01)
