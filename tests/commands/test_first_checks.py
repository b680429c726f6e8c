"""What is wrong with a checkpoint or a place is told before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import Tool

QUANTISED = ("--recipe", "int8", "--data", "nano-calibration")
ONE_MATRIX = "language_model.lm_head.weight"


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint again, to be changed."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


@pytest.mark.parametrize("flags", [(), QUANTISED], ids=["fp32", "int8"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
        ({"temperature": True}, "temperature: expected a number, found True"),
        ({"eos_token_id": [1.5]}, "eos_token_id: expected a token id or a list of them"),
        ({"eos_token_id": 10**6}, "eos_token_id 1000000 is outside the vocabulary of 756"),
    ],
)
def test_a_wrong_generation_config_is_found_before_anything_is_written(
    tool: Tool,
    copied: Path,
    tmp_path: Path,
    changes: dict[str, object],
    words: str,
    flags: tuple[str, ...],
) -> None:
    (copied / "generation_config.json").write_text(json.dumps(changes))
    done = tool("compile", copied, tmp_path / "made", *flags)
    assert (done.status, f"generation_config.json: 1 problem: {words}" in done.stderr) == (1, True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "recipe", "words"),
    [
        (float("nan"), "fp32", "the checkpoint itself holds NaN or infinity"),
        (float("inf"), "fp16", "the checkpoint itself holds NaN or infinity"),
        (1e38, "fp16", "too large for torch.float16; give a wider recipe (--recipe bf16 or fp32)"),
    ],
)
def test_a_value_that_is_not_finite_is_told_from_one_that_is_too_large(
    tool: Tool, checkpoint: Path, tmp_path: Path, value: float, recipe: str, words: str
) -> None:
    done = tool("synth", checkpoint / "config.json", tmp_path / "stored", "--stored")
    assert done.status == 0, done.stderr
    for shard in (tmp_path / "stored").glob("*.safetensors"):
        tensors = load_file(shard)
        if ONE_MATRIX in tensors:
            tensors[ONE_MATRIX][3, 5] = torch.tensor(value)
            save_file(tensors, shard)
    done = tool("export", tmp_path / "stored", tmp_path / "made", "--recipe", recipe)
    assert done.status == 1
    assert f"{ONE_MATRIX}: " in done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("command", ["compile", "export", "calibrate"])
@pytest.mark.parametrize("place", ["out", "deep/out", ""])
def test_an_output_inside_the_checkpoint_is_refused(
    tool: Tool, copied: Path, command: str, place: str
) -> None:
    before = sorted(copied.iterdir())
    flags = () if command == "export" else QUANTISED
    done = tool(command, copied, copied / place, *flags)
    assert done.status == 1
    assert f"{copied / place}: lies in {copied}, which it is made from" in done.stderr
    assert sorted(copied.iterdir()) == before


def test_a_link_into_the_checkpoint_is_inside_too(tool: Tool, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied, target_is_directory=True)
    done = tool("export", copied, tmp_path / "link" / "out")
    assert (done.status, "lies in" in done.stderr) == (1, True)


def test_a_repository_inside_its_artifact_is_refused(tool: Tool, artifact_copy: Path) -> None:
    done = tool("triton", artifact_copy, artifact_copy / "rep")
    assert done.status == 1
    assert f"{artifact_copy / 'rep'}: lies in {artifact_copy}" in done.stderr
    assert not (artifact_copy / "rep").exists()


def test_data_that_a_recipe_has_no_use_for_is_named(
    tool: Tool, checkpoint: Path, artifact: Path
) -> None:
    limits = ("--max-kv-cache-capacity", "2048", "--max-batch-size", "2", "--prefill-chunk", "64")
    note = "note: {} without effect: recipe fp32 is not quantised\n"
    for flags in (("--data", "none.jsonl"), ("--data", "none.jsonl", "--max-held-out", "3")):
        done = tool("compile", checkpoint, artifact, *limits, *flags)
        assert done.status == 0, done.stderr
        assert note.format(", ".join(flags[::2])) in done.stderr
    assert "without effect" not in tool("compile", checkpoint, artifact, *limits).stderr
