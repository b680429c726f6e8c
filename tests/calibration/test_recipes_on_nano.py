"""Every named recipe on the trained model: what it loses, through the compiled artifact.

All 500 held-out questions are for `make bench`; here it is the first hundred, always the same.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
from engines.targets import refusals, single_targets
from examples.nano.score import HERE
from export.recipe.reading import load_recipe, recipe_names
from export.recipe.recipe import Recipe
from runtime import Session
from runtime.artifact.folder import Artifact
from tool import app

NUM_QUESTIONS = 100
SAMPLES = ("--max-samples", "64", "--max-held-out", "24")
LIMITS = ("--max-batch-size", "8", "--max-kv-cache-capacity", "256")
WITHOUT_PLUGINS = ("fp16", "int8", "fp8")
QUANTISED = [name for name in recipe_names() if load_recipe(name).is_quantised]
EIGHT_BITS = ("int8", "fp8")
MAX_LOSS = {True: 0.01, False: 0.03}
"""Of exact match, for recipes of 8 bits and of 4."""
FP32_SCORE = 0.99
"""Of the first hundred; `tests/examples` measures all."""


class Made(NamedTuple):
    """An artifact, and what `compile` said of it."""

    folder: Path
    said: dict[str, Any]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The recipe of a test, compiled for the CPU; tests of one recipe follow each other."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name) / "made"
    words = ["compile", str(HERE / "checkpoint"), str(folder), "--recipe", name, "--json"]
    data = ("--data", "nano-calibration", "--held-out", "nano", *SAMPLES)
    is_quantised = load_recipe(name).is_quantised
    done = CliRunner().invoke(app, [*words, *(data if is_quantised else ()), *LIMITS])
    assert done.exit_code == 0, done.output
    return Made(folder, json.loads(done.stdout))


@pytest.mark.parametrize("made", QUANTISED, indirect=True)
def test_a_recipe_loses_no_more_than_it_may(made: Made) -> None:
    name = made.said["recipe"]
    assert made.said["kl_mean"] < 1e-3
    assert made.said["top1"] >= load_recipe(name).budget.top1
    session = Session.open(made.folder, num_threads=1)
    found = evaluate(session, load_examples("nano")[:NUM_QUESTIONS], max_new_tokens=64)
    assert found.exact_match >= FP32_SCORE - MAX_LOSS[name.startswith(EIGHT_BITS)]


@pytest.mark.parametrize("made", recipe_names(), indirect=True)
def test_every_graph_of_a_recipe_becomes_a_plan_that_means_the_same(made: Made) -> None:
    """Plans are built, not run; what their graphs mean is measured in ONNX Runtime."""
    recipe = load_recipe(made.said["recipe"])
    targets = [name for name in ("rtx:sm89+sm120", "rtx:sm120") if _takes(name, recipe)]
    if not targets:
        assert recipe.cache is not None
        return
    for flags in [[], ["--no-plugins"]] if recipe.name in WITHOUT_PLUGINS else [[]]:
        words = ["build", str(made.folder), "--target", targets[0], *LIMITS, *flags]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(app, ["verify", str(made.folder), "--target", targets[0]])
        assert done.exit_code == 0, done.output
        record = Artifact.open(made.folder).target(targets[0])
        assert record.plans is not None
        assert record.plans.wanted_precision >= 0.95
        has_kernels = not flags and recipe.name != "nvfp4"
        assert ("plugin-experts" in record.passes) == has_kernels


def _takes(target: str, recipe: Recipe) -> bool:
    return not any(refusals(one, recipe) for one in single_targets(target))


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
