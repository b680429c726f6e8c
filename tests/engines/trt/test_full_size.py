"""One MoE layer of the released sizes, lowered and built as the build stage does it."""

from pathlib import Path

import pytest

from benchmarks.hollow_graphs import HollowGraphs
from benchmarks.plan_build import Case, build
from export.recipe.reading import load_recipe
from runtime.limits import Limits

USUAL = Limits(
    max_tokens=8192, max_input_tokens=8192, max_slots=2, max_patches=5352, prefill_chunk=512
)
MOST_CODE_BYTES = 25 << 20
"""The most that a plan without weights may have; seen: 7 to 9 MB."""


@pytest.mark.parametrize("recipe", ["int4", "fp8"])
def test_a_layer_of_the_released_sizes_becomes_a_plan_of_code(recipe: str, tmp_path: Path) -> None:
    graphs = HollowGraphs(tmp_path / "model")
    graphs.write(load_recipe(recipe), [1], tmp_path / "graphs", only=["layer_01"])
    case = Case(
        recipe=recipe,
        target="rtx:sm89",
        graphs=("layer_01",),
        weights="external",
        limits=USUAL,
    )
    made = build(case, tmp_path)
    assert "error" not in made
    assert made["num_plans"] == 1
    assert made["wanted_precision"] == 1.0
    assert made["plan_bytes"] < MOST_CODE_BYTES < made["weights_bytes"]
