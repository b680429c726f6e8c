"""The gate: what a calibration must have seen, and what a recipe may lose."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.price.gate import GateLimits, check_price, parse_budget, price_advice
from examples.nano.score import HERE
from export.recipe.recipe import Budget, Recipe
from runtime.errors import InputError
from tests.commands.conftest import Outcome, Tool
from tests.commands.conftest import tool as tool

HELD_OUT = ("--held-out", "nano", "--max-held-out", "6")


Calibrate = Callable[..., Outcome]


@pytest.fixture
def calibrate(tool: Tool) -> Calibrate:
    """Call `calibrate` on nano with a folder to make, a recipe, a set, and further flags."""

    def call(folder: Path, recipe: str, data: str | Path, *flags: str) -> Outcome:
        words = ("--recipe", recipe, "--data", data, *HELD_OUT, *flags)
        return tool("calibrate", HERE / "checkpoint", folder, *words)

    return call


def _text_set(path: Path, count: int) -> Path:
    lines = [
        {"messages": [{"role": "user", "content": f"What is {i} plus {i + 3}?"}], "reply": "8"}
        for i in range(count)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_starved_experts_fail_and_the_limit_can_be_moved(
    calibrate: Calibrate, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    few = ("--max-samples", "2")
    done = calibrate(folder, "int8", "nano-calibration", *few)
    assert done.status == 1
    assert re.search(r"\d+ of 32 experts saw fewer than 32 tokens \(allowed 5%", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (folder / "manifest.json").exists()
    assert (folder / "calibration" / "quality.json").exists()
    again = calibrate(folder, "int8", "nano-calibration", *few, "--max-fallback-experts", "1")
    assert again.status == 0, again.stderr
    gate = json.loads((folder / "manifest.json").read_text())["calibration"]["gate"]
    assert gate["overridden"] == ["max_fallback_share"]
    assert gate["max_fallback_share"] == 1.0


def test_a_set_without_images_cannot_calibrate_the_tower(
    calibrate: Calibrate, tmp_path: Path
) -> None:
    data = _text_set(tmp_path / "texts.jsonl", 40)
    done = calibrate(tmp_path / "made", "int8", data)
    assert done.status == 1
    assert "no sample has an image, and the recipe quantises vision and projector" in done.stderr
    assert not (tmp_path / "made" / "calibration").exists()


def test_a_budget_that_is_too_tight_fails_with_all_reasons(
    calibrate: Calibrate, tmp_path: Path
) -> None:
    flags = ("--max-samples", "48", "--budget", "kl=0,top1=1")
    done = calibrate(tmp_path / "made", "nvfp4", "nano-calibration", *flags)
    assert done.status == 1
    assert re.search(r"mean KL [\d.e-]+ nats is over the budget of 0", done.stderr)
    assert re.search(r"the same command with --budget kl=[\d.e-]+\S* goes on", done.stderr)


def test_what_is_observed_cannot_judge(calibrate: Calibrate, tmp_path: Path) -> None:
    done = calibrate(tmp_path / "made", "int8", "nano", "--max-samples", "500")
    assert done.status == 1
    assert "conversations are both observed and held out" in done.stderr


def test_a_quantised_recipe_needs_data_and_a_plain_one_no_calibration(
    tool: Tool, tmp_path: Path
) -> None:
    words = (HERE / "checkpoint", tmp_path / "made", "--recipe")
    cases = {
        ("compile", "int8"): "give conversations with --data",
        ("export", "int8"): "its scales come from samples",
        ("compile", "int9"): "known ones are bf16, fp16, fp32",
    }
    for (command, recipe), message in cases.items():
        done = tool(command, *words, recipe)
        assert (done.status, message in done.stderr) == (1, True), done.stderr
    done = tool("calibrate", *words, "bf16", "--data", "nano-calibration")
    assert (done.status, "quantises nothing" in done.stderr) == (1, True), done.stderr


def test_a_folder_of_images_is_a_set(calibrate: Calibrate, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted((HERE / "calibration").glob("*.png"))[:40]:
        shutil.copy(path, pictures)
    flags = ("--data-prompt", "What does it say?", "--max-fallback-experts", "1")
    done = calibrate(tmp_path / "made", "int8-weight-only", pictures, *flags)
    assert done.status == 0, done.stderr
    (tmp_path / "empty").mkdir()
    done = calibrate(tmp_path / "other", "int8", tmp_path / "empty")
    assert (done.status, "no images" in done.stderr) == (1, True)


def _stats(lost_of_25: int = 0, **price: float) -> dict[str, Any]:
    found = {"kl_mean": 0.0, "top1": 1.0, "replies": 25, "exact_match_reference": 1.0}
    found |= {"exact_match": (25 - lost_of_25) / 25, **price}
    return {"head": {"recipes": {"mine": {"price": found}}}}


def test_a_loss_equal_to_its_limit_passes() -> None:
    recipe = Recipe(name="mine")
    assert 1 - 24 / 25 > 0.04
    limits = GateLimits(budget=Budget(kl=0.1 * 3, top1=0.93, exact_match=0.04))
    stats = _stats(1, kl_mean=0.30000000000000010, top1=1 - 0.07000000000000003)
    assert check_price(recipe, stats, limits) == []
    stats = _stats(2, kl_mean=0.3001, top1=0.9299)
    assert len(check_price(recipe, stats, limits)) == 3


def test_what_is_over_the_budget_is_told_as_the_budget_is_written() -> None:
    recipe = Recipe(name="mine")
    limits = GateLimits(budget=Budget(kl=0.01, top1=0.95, exact_match=0.03))
    stats = _stats(1, kl_mean=0.01234, top1=0.94321)
    assert check_price(recipe, stats, limits) == [
        "mean KL 0.0123 nats is over the budget of 0.01",
        "top-1 agreement 0.9432 is below 0.95",
        "exact match falls by 4 points (1 of 25 samples), allowed 3",
    ]
    advice = price_advice(recipe, stats, limits)
    flag = re.search(r"the same command with --budget (\S+) goes on", advice)
    assert flag is not None
    assert flag[1] == "kl=0.013,top1=0.943,em=4"
    wider = GateLimits(budget=parse_budget(flag[1], Budget()))
    assert (check_price(recipe, stats, wider), price_advice(recipe, stats, wider)) == ([], "")


def test_a_loss_that_was_measured_without_its_count_is_told_without_it() -> None:
    recipe, stats = Recipe(name="mine"), _stats(1)
    del stats["head"]["recipes"]["mine"]["price"]["replies"]
    limits = GateLimits(budget=Budget(kl=0.01, top1=0.95, exact_match=0.03))
    assert check_price(recipe, stats, limits) == ["exact match falls by 4 points, allowed 3"]


def test_no_budget_is_advised_for_a_loss_without_end() -> None:
    recipe, limits = Recipe(name="mine"), GateLimits()
    assert len(check_price(recipe, _stats(kl_mean=float("nan")), limits)) == 1
    assert price_advice(recipe, _stats(kl_mean=float("nan")), limits) == ""


def test_a_budget_is_read_and_refused() -> None:
    assert parse_budget("kl=0.5, em=2", Budget()) == Budget(kl=0.5, exact_match=0.02)
    for text in ("kl", "kl=x", "speed=3", ""):
        with pytest.raises(InputError, match="expected kl=NATS, top1=SHARE or em=POINTS"):
            parse_budget(text, Budget())
