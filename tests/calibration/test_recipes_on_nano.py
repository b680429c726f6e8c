"""Every named recipe on the trained model: what it loses, through the compiled artifact.

All 500 held-out questions are for `make bench`; here it is the first hundred, always the same.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
from examples.nano.score import HERE
from export.recipe.reading import load_recipe, recipe_names
from runtime import Session
from tool import app

NUM_QUESTIONS = 100
SAMPLES = ("--max-samples", "64", "--max-held-out", "24")
LIMITS = ("--max-batch-size", "8", "--max-kv-cache-capacity", "256")
QUANTISED = [name for name in recipe_names() if load_recipe(name).is_quantised]
EIGHT_BITS = ("int8", "fp8")
MAX_LOSS = {True: 0.01, False: 0.03}
"""Of exact match, for recipes of 8 bits and of 4."""
FP32_SCORE = 0.99
"""Of the first hundred; `tests/examples` measures all."""


@pytest.mark.parametrize("name", QUANTISED)
def test_a_recipe_loses_no_more_than_it_may(name: str, tmp_path: Path) -> None:
    data = ("--data", "nano-calibration", "--held-out", "nano", *SAMPLES)
    words = [
        "compile",
        str(HERE / "checkpoint"),
        str(tmp_path / "made"),
        "--recipe",
        name,
        "--json",
    ]
    done = CliRunner().invoke(app, [*words, *data, *LIMITS])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["recipe"] == name
    assert made["kl_mean"] < 1e-3
    assert made["top1"] >= load_recipe(name).budget.top1
    session = Session.open(tmp_path / "made", num_threads=1)
    found = evaluate(session, load_examples("nano")[:NUM_QUESTIONS], max_new_tokens=64)
    assert found.exact_match >= FP32_SCORE - MAX_LOSS[name.startswith(EIGHT_BITS)]


def test_auto_stays_within_its_budget_and_says_what_it_tried(tmp_path: Path) -> None:
    words = ["calibrate", str(HERE / "checkpoint"), str(tmp_path / "made"), "--recipe", "auto"]
    data = ["--data", "nano-calibration", "--held-out", "nano"]
    few = ["--max-samples", "40", "--max-held-out", "12", "--budget", "kl=0.00005,em=1"]
    done = CliRunner().invoke(app, [*words, *data, *few, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kl_mean"] <= 5e-5
    quality = json.loads((tmp_path / "made" / "calibration" / "quality.json").read_text())
    choices = quality["choices"]
    chosen = {one["part"]: one for one in choices if one["chosen"]}
    assert len(chosen) == len({one["part"] for one in choices}) == 8
    assert sum(one["kl"] for one in chosen.values()) <= 5e-5
    assert any(one["format"] != "bf16" for one in chosen.values())
    assert not (tmp_path / "made" / "calibration" / "trials").exists()
    again = CliRunner().invoke(app, [*words, *data, *few, "--json"])
    assert again.exit_code == 0, again.output
    assert again.stdout == done.stdout
