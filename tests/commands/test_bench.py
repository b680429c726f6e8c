"""`bench`: rows, figures that follow from samples, what is left out and refused."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.measure import bench
from engines.measure.bandwidth import measure_bandwidth

from .conftest import Tool

SMALL = ("-p", "32", "-n", "4", "-d", "0,64", "--batch-sizes", "1,2", "--images", "56x56")


@pytest.fixture(autouse=True)
def small_buffer() -> Iterator[None]:
    """Measure bandwidth on a buffer that any machine has room for."""
    quick = partial(measure_bandwidth, buffer_bytes=64 << 20, passes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure_bandwidth", quick)
        yield


@pytest.fixture
def no_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tiny model did not fit in a cache."""
    monkeypatch.setattr(bench, "last_cache_bytes", lambda: 0)


def measured(tool: Tool, *words: str | Path) -> dict[str, Any]:
    done = tool("bench", *words, "--threads", "1", "-r", "2", "--json")
    assert done.status == 0, done.stderr
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


@pytest.mark.usefixtures("no_last_cache")
def test_every_figure_follows_from_the_samples(tool: Tool, artifact: Path) -> None:
    found = measured(tool, artifact, *SMALL)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        *("pp32", "tg4", "tg4 x2", "pp32 @ d64", "tg4 @ d64", "tg4 x2 @ d64"),
    ]
    gb_s = found["bandwidth"]["gb_s"]
    for row in rows.values():
        assert len(row["samples_s"]) == 2
        tokens = row["tokens"] * row["batch"]
        speeds = [tokens / sum(one) for one in row["samples_s"]]
        assert row["tokens_per_s"]["mean"] == pytest.approx(sum(speeds) / 2)
        if row["kind"] == "prompt":
            assert row["limit_share"] is None
            continue
        assert [len(one) for one in row["samples_s"]] == [4, 4]
        limit = gb_s * 1e9 / row["moved_bytes_per_token"]
        assert row["limit_tokens_per_s"] == pytest.approx(limit)
        assert row["limit_share"] == pytest.approx(sum(speeds) / 2 / limit)
    deeper = rows["tg4 @ d64"]["moved_bytes_per_token"] - rows["tg4"]["moved_bytes_per_token"]
    assert deeper == pytest.approx(64 * found["memory"]["cache_token_bytes"])
    assert rows["tg4 x2"]["moved_bytes_per_token"] < rows["tg4"]["moved_bytes_per_token"]


def test_it_says_what_was_measured_on_what(tool: Tool, artifact: Path) -> None:
    found = measured(tool, artifact, "-p", "0", "-n", "2", "-d", "0", "--images", "56x56,28x28")
    assert list(found) == [
        *("format", "artifact", "settings", "machine", "versions", "cold_start", "images", "rows"),
        *("memory", "bandwidth", "disturbance", "left_out"),
    ]
    assert [(one["name"], one["image_tokens"]) for one in found["images"]] == [
        *(("vit 56x56", 4), ("vit 28x28", 1)),
    ]
    assert found["artifact"]["recipe"] == "fp32"
    assert found["settings"] == {"threads": 1, "cpu_weights": "auto", "repeats": 2}
    assert {"python", "onnxruntime", "numpy"} <= set(found["versions"])
    assert found["cold_start"]["image"] == "56x56"
    assert 0 <= found["cold_start"]["page_cache_share"] <= 1
    memory = found["memory"]
    assert memory["peak_anonymous_bytes"] > memory["idle_anonymous_bytes"]
    assert memory["cache_bytes"] == 2 * 2048 * memory["cache_token_bytes"]
    assert len(found["bandwidth"]["samples_gb_s"]) == 4, "before and after"


@pytest.mark.usefixtures("no_last_cache")
def test_tables_have_a_row_for_each_test_and_notes_are_on_stderr(
    tool: Tool, artifact: Path
) -> None:
    done = tool("bench", artifact, "-n", "2", "--images", "56x56", "-r", "1", "--threads", "1")
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["test", "tokens/s"]
    tests = [line.split("  ")[0] for line in lines]
    assert tests[1:5] == ["pp512", "tg2", "pp512 @ d1024", "tg2 @ d1024"]
    assert lines[2].endswith(" %")
    assert not lines[1].endswith(" %")
    assert "vit 56x56" in tests
    assert any(line.startswith("memory bandwidth") for line in lines)
    left_out = "pp512 @ d4096, tg2 @ d4096, pp512 @ d8192, tg2 @ d8192"
    assert f"note: left out: {left_out}: the cache takes 2048 tokens\n" in done.stderr
    assert "read by numpy" in done.stderr


def test_a_model_that_fits_in_the_last_cache_has_no_share(
    tool: Tool, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "last_cache_bytes", lambda: 1 << 40)
    done = tool("bench", artifact, "-p", "0", "-n", "2", "-d", "0", "--images", "none", "-r", "1")
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines()[1].endswith("B"), "bytes are known, a limit is not"
    assert "memory is no limit" in done.stderr
    assert "no image" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("-d", "0,4000"), 1, "--depths 4000 does not fit"),
        (("--batch-sizes", "3"), 1, "--max-batch-size 3"),
        (("--images", "4x"), 1, "expected sizes such as 448x448"),
        (("--target", "rtx:sm89"), 1, "not built for target 'rtx:sm89'"),
        (("-n", "many"), 2, "--decode-tokens"),
        (("-r", "0"), 2, "--repeats"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tool: Tool, artifact: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    done = tool("bench", artifact, *words)
    assert (done.status, done.stdout) == (status, "")
    assert message in done.stderr
    if status == 1:
        assert done.stderr.count("\n") == 1
