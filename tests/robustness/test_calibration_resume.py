"""A calibration may be killed at any moment: the next run goes on and ends with the same bytes."""

import re
import shutil
from pathlib import Path

import pytest

from .conftest import WarmTool, leftovers, tree

KILLED = -9
PARTS = ("vision", "projector", "attention", "dense_mlp", "experts", "shared_experts")
EVERY = 9
"""Of all events, each ninth is died at."""


@pytest.fixture(scope="module")
def recipe(open_root: Path) -> Path:
    """Everything in int8; the base type is one that the tool has traced already."""
    body = 'weights = "int8"\nactivations = "int8"\nobserver = "mse"\n'
    path = open_root / "own.toml"
    parts = "".join(f"[parts.{part}]\n{body}" for part in PARTS)
    path.write_text(f'base = "fp32"\n{parts}[budget]\nkl = 100\ntop1 = 0\nexact_match = 1\n')
    return path


def test_a_killed_calibration_ends_the_same_when_it_is_run_again(
    tool: WarmTool, checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    data = ("--data", "nano-calibration", "--held-out", "nano")
    counts = ("--max-samples", "3", "--max-held-out", "2", "--max-fallback-experts", "1")

    def words(folder: Path) -> tuple[str | Path, ...]:
        return ("calibrate", checkpoint, folder, "--recipe", recipe, *data, *counts)

    straight = tmp_path / "straight"
    whole = tool(*words(straight))
    assert whole.status == 0, whole.stderr
    assert (whole.events[0], whole.events[-1]) == ("before calibrate", "after calibrate")
    wanted = tree(straight)
    assert any(name.endswith("layer_01.safetensors") for name in map(str, wanted))
    assert leftovers(straight) == []
    left = {path.name for path in (straight / "calibration").iterdir()}
    assert left == {"quality.json", "reference.safetensors", "report.html", "scales"}
    for index in range(1, len(whole.events), EVERY):
        folder = tmp_path / str(index)
        killed = tool(*words(folder), dies_at=index)
        assert (killed.status, killed.events) == (KILLED, whole.events[: index + 1])
        again = tool(*words(folder))
        assert again.status == 0, f"killed {whole.events[index]}: {again.stderr}"
        assert tree(folder) == wanted, f"killed {whole.events[index]}"
        assert leftovers(folder) == [], f"killed {whole.events[index]}"
        shutil.rmtree(folder)


def test_the_same_calibration_twice_touches_nothing(
    tool: WarmTool, checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    words = ("calibrate", checkpoint, tmp_path / "one", "--recipe", recipe)
    data = ("--data", "nano-calibration", "--max-samples", "3", "--max-fallback-experts", "1")
    assert tool(*words, *data).status == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    assert tool(*words, *data).status == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")} == before
    other = tool(*words, *data, "--data-seed", "1")
    assert other.status == 1
    assert "another calibration (other samples, limits or checkpoint)" in other.stderr
    another = tool("calibrate", checkpoint, tmp_path / "one", "--recipe", "int8", *data)
    assert another.status == 1
    assert re.search(r"another calibration \(recipe \w+, asked for int8\)", another.stderr)
