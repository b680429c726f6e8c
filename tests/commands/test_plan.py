"""`plan`: what it prints, what it refuses, and that no weight is read for it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from benchmarks.plans import as_table
from commands import output
from engines.rates import RATES
from export.synthetic.folder import write_synthetic

from .conftest import Tool

ROOT = Path(__file__).parents[2]
NANO = ROOT / "examples" / "nano" / "checkpoint"
PAGE = (ROOT / "docs" / "planning.md").read_text()
HEADINGS = ["cache and largest image", "stages", "requests", "targets"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the released sizes: a config and a seed."""
    return write_synthetic(tmp_path_factory.mktemp("full") / "checkpoint", shape="full")


@pytest.fixture
def vision_in_int4(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('[parts.vision]\nweights = "int4"\ngroup = 128\n')
    return path


def planned(tool: Tool, *words: str | Path) -> dict[str, Any]:
    done = tool("plan", *words, "--json")
    assert done.status == 0, done.stderr
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def test_the_released_sizes_are_planned_at_once_and_without_torch(full: Path) -> None:
    words = ["plan", str(full), "--recipe", "int4", "--json"]
    ask = (
        f"import sys, tool; sys.argv[1:] = {words!r}\n"
        "try:\n    tool.main()\nfinally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - begun < 10  # one second on a machine that does nothing else
    assert (done.returncode, done.stderr) == (0, "False\n")
    fields = json.loads(done.stdout)
    assert fields["total"]["parameters"] == 16_407_656_048
    assert fields["total"]["stored_bytes"] == sum(part["stored_bytes"] for part in fields["parts"])
    assert 1.55e9 < fields["total"]["active_bytes"] < 1.65e9
    assert fields["cache"]["token_bytes"] == 62_208


def test_json_and_tables_tell_the_same(tool: Tool, full: Path) -> None:
    fields = planned(tool, full, "--recipe", "int4")
    done = tool("plan", full, "--recipe", "int4")
    assert (done.status, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["part", "format", "parameters", "codes"]
    for part in (*fields["parts"], fields["total"]):
        (row,) = [line for line in lines if line.split()[:1] == [part["part"]]]
        assert f"{part['parameters']:,}" in row
        assert part["format"] in row
    for name in (*fields["stages"], *fields["targets"]):
        shown = name.get("stage") or name["target"]
        assert any(line.split()[:1] == [shown] for line in lines)
    found = [line for line in lines if line.split(":")[0] in HEADINGS]
    assert [line.split(":")[0] for line in found] == HEADINGS
    assert "estimates" in found[1]
    assert "128 conversations of 512 tokens" in found[1]


def test_the_page_shows_what_the_command_prints(tool: Tool, full: Path) -> None:
    on_cpu, on_gpus = re.findall(r"tool.py plan out/full (.*)", PAGE)
    shown = tool("plan", full, *on_cpu.split()).stdout
    assert f"```text\n{shown}```\n" in PAGE
    shown = tool("plan", full, *on_gpus.split()).stdout
    tables = shown[shown.index("stages: ") : shown.index("\n\ntargets\n")]
    assert f"```text\n{tables}\n```\n" in PAGE


def test_the_page_has_what_was_measured() -> None:
    builds = json.loads((ROOT / "benchmarks" / "plans.json").read_text())["builds"]
    usual = [one for one in builds if one["limits"] == builds[0]["limits"]]
    layers = [one for one in usual if one["graphs"] == ["layer_01"] and "error" not in one]
    towers = [one for one in usual if one["graphs"] == ["vision"]]
    assert as_table([*layers, *towers]) in PAGE


def test_the_page_has_every_rate(tool: Tool, full: Path, vision_in_int4: Path) -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) ([MG]) (\w+) \| (.+) \|$", PAGE, re.MULTILINE)
    scales = {"M": 1e6, "G": 1e9}
    found = {
        name: (float(number) * scales[scale], unit, source)
        for name, number, scale, unit, source in rows
    }
    assert found == {name: (one.per_s, one.unit, one.source) for name, one in RATES.items()}
    refusal = " ".join(tool("plan", full, "--recipe", vision_in_int4).stderr.split())
    refusal = refusal.replace(str(vision_in_int4), "mine.toml")
    assert refusal in " ".join(PAGE.split())


def test_the_flags_of_the_build_decide_cache_and_image(tool: Tool, full: Path) -> None:
    limits = ["--max-kv-cache-capacity", "1000", "--max-batch-size", "3"]
    fields = planned(tool, full, "--recipe", "bf16", *limits, "--max-image-tokens", "100")
    assert fields["cache"] == {
        "dtype": "fp32",
        "token_bytes": 62_208,
        "slot_bytes": 62_208_000,
        "total_bytes": 3 * 62_208_000,
    }
    assert fields["largest_image"] == {"patches": 400, "tokens": 100}
    done = tool("plan", full, "--max-kv-cache-capacity", "200000")
    assert done.status == 1
    assert "the model was made for at most 131072" in done.stderr


def test_layers_that_are_left_out_count_nowhere(tool: Tool, full: Path) -> None:
    fields = planned(tool, full, "--recipe", "bf16", "--layers", "0,1")
    assert fields["layers"] == [0, 1]
    parts = {part["part"]: part["parameters"] for part in fields["parts"]}
    assert parts["experts"] == 553_648_128
    assert fields["cache"]["token_bytes"] == 2 * 2304
    done = tool("plan", full, "--layers", "26,27")
    assert done.status == 1
    assert "no decoder layers [27]; the model has 0 to 26" in done.stderr


def test_a_recipe_that_does_not_fit_is_refused_for_every_target(
    tool: Tool, full: Path, vision_in_int4: Path
) -> None:
    for target in ("cpu", "rtx:sm120"):
        done = tool("plan", full, "--recipe", vision_in_int4, "--target", target)
        assert (done.status, done.stdout) == (1, "")
        assert "every target: 1 problem: parts.vision: groups of 128 (int4)" in done.stderr
        assert "mlp.fc1 (4304): use nvfp4 (groups of 16) or int8" in done.stderr
    done = tool("plan", NANO, "--recipe", vision_in_int4)
    assert done.status == 1
    assert "mlp.fc1 (592)" in done.stderr


def test_a_target_that_cannot_take_the_recipe_fails_behind_the_tables(
    tool: Tool, full: Path
) -> None:
    done = tool("plan", full, "--recipe", "fp8", "--target", "rtx:sm86")
    assert done.status == 1
    assert "no fp8 (vision, " in done.stdout
    assert done.stderr.startswith(
        "error: target rtx:sm86 cannot take recipe fp8: 1 problem: no fp8"
    )


def test_several_gpus_fail_where_one_of_them_cannot_take_the_recipe(tool: Tool, full: Path) -> None:
    done = tool("plan", full, "--recipe", "fp8", "--target", "rtx:sm86+sm89")
    assert done.status == 1
    assert done.stderr.startswith(
        "error: target rtx:sm86+sm89 cannot take recipe fp8: 1 problem: rtx:sm86 has no fp8"
    )
    fields = planned(tool, full, "--recipe", "fp8", "--target", "rtx:sm120+sm89")
    assert fields["target"] == "rtx:sm89+sm120"
    done = tool("plan", full, "--target", "rtx:sm89+sm89")
    assert (done.status, done.stdout) == (1, "")
    assert "sm89 is named twice" in done.stderr


@pytest.mark.parametrize("target", ["rtx:sm89", "rtx:sm89+sm120", "trt"])
def test_targets_of_tensorrt_are_planned_with_the_memory_of_the_gpu(
    tool: Tool, full: Path, target: str
) -> None:
    fields = planned(tool, full, "--recipe", "fp8", "--target", target)
    stages = [stage["stage"] for stage in fields["stages"]]
    assert stages == ["calibrate", "build/external", "build/embedded"]
    assert fields["speeds"] == []
    assert fields["device"]["cache_bytes"] == fields["cache"]["total_bytes"]
    shown = tool("plan", full, "--recipe", "fp8", "--target", target).stdout
    assert output.size(fields["device"]["total_bytes"]) in shown
    lines = shown.splitlines()
    for step in fields["experts"]:
        (row,) = [line for line in lines if line.split()[:1] == [step["form"]]]
        assert row.split()[1] == ("yes" if step["is_chosen"] else "no")
        assert output.size(step["moved_bytes"]) in row
    assert [line.split(":")[0] for line in lines if line.split(":")[0] in HEADINGS] == HEADINGS


def test_an_unknown_target_is_refused_by_name(tool: Tool, full: Path) -> None:
    done = tool("plan", full, "--target", "rtx:sm90")
    assert (done.status, done.stdout) == (1, "")
    assert "TensorRT-RTX does not compile for H100 and H200; known ones are cpu" in done.stderr


def test_auto_has_no_parts_to_plan(tool: Tool, full: Path) -> None:
    done = tool("plan", full, "--recipe", "auto")
    assert (done.status, done.stdout) == (1, "")
    assert "its parts are found by measurement" in done.stderr


def test_a_folder_without_weights_is_planned_and_told_so(tool: Tool, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((NANO / name).read_bytes())
    done = tool("plan", tmp_path, "--json")
    assert done.status == 0
    assert json.loads(done.stdout)["values"] == "absent"
    assert "has no weights yet" in done.stderr
    assert planned(tool, NANO)["values"] == "stored"


def test_headers_that_contradict_the_config_are_refused(tool: Tool, tmp_path: Path) -> None:
    for path in NANO.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 256
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = tool("plan", tmp_path)
    assert (done.status, done.stdout) == (1, "")
    assert "mlp.gate_proj.weight has shape [384, 128], expected [256, 128]" in done.stderr
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    assert "model-00002-of-00004.safetensors is missing" in tool("plan", tmp_path).stderr


def test_of_a_hub_id_only_small_files_are_fetched(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: object) -> str:
        asked.update(options, hub_id=hub_id)
        return str(tmp_path)

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((NANO / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert planned(tool, "somebody/model", "--revision", "v1")["values"] == "absent"
    assert (asked["hub_id"], asked["revision"]) == ("somebody/model", "v1")
    assert not [name for name in asked["allow_patterns"] if "safetensors" in name]


def test_a_hub_that_gives_nothing_is_one_line(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(hub_id: str, **options: object) -> str:
        raise RuntimeError(f"{hub_id}\nis not there")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    done = tool("plan", "somebody/model")
    assert done.status == 1
    assert "the hub did not give its config: RuntimeError: somebody/model is not" in done.stderr


@pytest.mark.slow
def test_a_plan_of_nano_is_what_compiling_it_leaves(tool: Tool, tmp_path: Path) -> None:
    few = ["--max-samples", "4", "--max-held-out", "1", "--budget", "kl=9,top1=0,em=100"]
    gate = ["--min-tokens-per-expert", "0", "--data", "nano-calibration"]
    made = tmp_path / "made"
    done = tool("compile", NANO, made, "--recipe", "nvfp4", *few, *gate)
    assert done.status == 0, done.stderr
    fields = planned(tool, NANO, "--recipe", "nvfp4")
    sizes = {path.name: path.stat().st_size for path in (made / "graphs" / "weights").iterdir()}
    new = sum(size for name, size in sizes.items() if ".cpu." in name)
    stored = sum(sizes.values()) - new
    build = fields["stages"][1]
    assert build["stage"] == "build"
    # Gaps between tensors are a few percent of so small a model.
    assert 1.0 <= stored / fields["total"]["stored_bytes"] < 1.06
    assert 1.0 <= new / build["left_bytes"] < 1.06
