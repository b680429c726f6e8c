"""A whole artifact built for TensorRT-RTX: plans, bindings, receipts, reuse, kills, refusals."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

from calibration.verify import verify_artifact
from engines.build import build_target, check_build
from engines.options import BuildOptions, PlanOptions
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe, parse_recipe
from export.stage import ExportOptions, export_checkpoint
from runtime import files
from runtime.artifact.folder import Artifact
from runtime.artifact.records import TargetRecord
from runtime.errors import ArtifactError, GateError, UnsupportedError
from runtime.names import BEST
from tests.robustness.tampering import put_in_place
from tool import app

from .plan_header import read_header

TARGET = "rtx:sm89+sm120"
FOLDER = Path("engines") / "rtx-sm89+sm120"
SIZES = BuildOptions(max_tokens=64, max_slots=2, prefill_chunk=8)


@pytest.fixture(scope="module")
def neutral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target") / "neutral"
    options = ExportOptions(recipe=load_recipe("fp16"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    return folder


@pytest.fixture(scope="module")
def built(neutral: Path) -> Path:
    """Must not be changed."""
    folder = shutil.copytree(neutral, neutral.with_name("built"))
    build_target(folder, TARGET, SIZES)
    return folder


def record_of(folder: Path, target: str = TARGET) -> TargetRecord:
    return Artifact.open(folder).target(target)


def contents(folder: Path) -> Mapping[str, bytes]:
    skipped = (".checked.json",)
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name not in skipped
    }


def test_layers_of_a_kind_share_a_plan_and_differ_in_their_weights(built: Path) -> None:
    record = record_of(built)
    assert record.plans is not None
    engines = record.plans.engines
    assert engines["layer_01"].path == engines["layer_02"].path
    assert len({one.path for one in engines.values()}) == 5
    first, second = engines["layer_01"].weights, engines["layer_02"].weights
    assert first.keys() == second.keys()
    assert all(one.path == "graphs/weights/layer_01.bin" for one in first.values())
    assert all(one.path == "graphs/weights/layer_02.bin" for one in second.values())
    assert {"mlp.gate.e_score_correction_bias", "mlp.experts.down_proj"} <= first.keys()


def test_plans_hold_no_weights_and_are_for_both_cards(built: Path) -> None:
    for path in (built / FOLDER).glob("*.plan"):
        header = read_header(path.read_bytes())
        assert header.sms == (89, 120)
        assert header.size_bytes == path.stat().st_size
        report = json.loads(path.with_suffix(".json").read_text())
        assert report["weights_bytes"] < 10_000
        assert report["wanted_precision"] == 1.0
        assert report["target"] == TARGET


def test_every_lowered_graph_means_what_its_module_computes(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "built")
    figures = verify_artifact(folder, TARGET).parity[TARGET]
    assert figures.keys() == {*record_of(built).graphs, "embedding"}
    assert max(figures.values()) < 1e-5


def test_an_output_that_no_module_and_no_pass_gives_is_not_passed_over(
    built: Path, tmp_path: Path
) -> None:
    folder, name = shutil.copytree(built, tmp_path / "built"), record_of(built).graphs["head"]
    model = onnx.load(folder / name, load_external_data=False)
    (best,) = (one for one in model.graph.output if one.name == BEST)
    model.graph.node.append(helper.make_node("Identity", [BEST], ["second"]))
    best.name = "second"
    put_in_place(folder, name, model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"head cannot be measured: .*shorter"):
        verify_artifact(folder, TARGET)


def test_the_same_build_again_touches_nothing(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "built")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    build_target(folder, TARGET, SIZES)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


class KilledError(Exception):
    """Ends a build as a kill would."""


@pytest.mark.parametrize(
    "event", ["after layer_01.rtx-sm89+sm120.onnx", "after layer_00.onnx", "after layer_01.plan"]
)
def test_a_killed_build_goes_on_behind_its_last_file(
    event: str, neutral: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(neutral, tmp_path / "neutral")

    def kill(seen: str) -> None:
        if seen == event:
            raise KilledError

    monkeypatch.setattr(files, "on_event", kill)
    with pytest.raises(KilledError):
        build_target(folder, TARGET, SIZES)
    assert TARGET not in Artifact.open(folder).manifest.targets
    monkeypatch.undo()
    build_target(folder, TARGET, SIZES)
    made, expected = contents(folder), contents(built)
    assert made.keys() == expected.keys()
    # TensorRT numbers some layers in no fixed order, so that plans differ in a few bytes.
    differing = {name for name in made if made[name] != expected[name]}
    assert {name for name in differing if not name.endswith(".plan")} <= {"manifest.json"}
    for name in differing:
        if name.endswith(".plan"):
            assert len(made[name]) == len(expected[name])


def test_other_limits_are_built_anew_in_place_of_the_old(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "built")
    wider = BuildOptions(max_tokens=128, max_slots=2, prefill_chunk=8)
    build_target(folder, TARGET, wider)
    assert record_of(folder).limits.max_tokens == 128
    assert record_of(folder).key != record_of(built).key
    listed = Artifact.open(folder).manifest.files
    assert {path.relative_to(folder).as_posix() for path in (folder / FOLDER).iterdir()} <= set(
        listed
    )


def test_embedded_plans_hold_their_weights_one_for_each_graph(
    neutral: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(neutral, tmp_path / "neutral")
    options = BuildOptions(
        max_tokens=64, max_slots=2, prefill_chunk=8, plans=PlanOptions(weights="embedded")
    )
    build_target(folder, "rtx:sm89", options)
    record = record_of(folder, "rtx:sm89")
    assert record.plans is not None
    assert len({one.path for one in record.plans.engines.values()}) == 6
    assert not any(one.weights for one in record.plans.engines.values())
    for name, one in record.plans.engines.items():
        weights = (folder / "graphs" / "weights" / f"{name}.bin").stat().st_size
        assert (folder / one.path).stat().st_size > 0.9 * weights


def test_without_plugins_no_plan_names_one(neutral: Path, built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(neutral, tmp_path / "neutral")
    options = BuildOptions(
        max_tokens=64, max_slots=2, prefill_chunk=8, plans=PlanOptions(use_plugins=False)
    )
    build_target(folder, "rtx:sm89", options)
    bare = (folder / "engines" / "rtx-sm89" / "layer_01.plan").read_bytes()
    assert b"GroupedUp" not in bare
    assert b"GroupedUp" in (built / FOLDER / "layer_01.plan").read_bytes()
    assert max(verify_artifact(folder, "rtx:sm89").parity["rtx:sm89"].values()) < 1e-5


@pytest.mark.parametrize(
    ("target", "recipe", "message"),
    [
        ("rtx:sm80", "fp8", "rtx:sm80 has no fp8 .*: int8 or int4 would work, or fp8 on"),
        ("rtx:sm89+sm120", "nvfp4", "rtx:sm89 has no nvfp4"),
        ("rtx:sm90", "fp16", "does not compile for H100 and H200"),
        ("rtx:sm89", "int4-kv8", "rtx:sm89 has no int8 cache: leaving parts.cache out would work"),
        ("rtx:sm120+sm89", "fp16", "target 'rtx:sm120\\+sm89': write it 'rtx:sm89\\+sm120'"),
        ("rtx:sm89+sm89", "fp16", "sm89 is named twice"),
        ("rtx:sm75", "bf16", "rtx:sm75 has no bf16"),
        ("tpu", "fp16", "target 'tpu': known ones are cpu, rtx:sm75"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(
    target: str, recipe: str, message: str, neutral: Path
) -> None:
    model = neutral / "model"
    config = Checkpoint.open(HERE / "checkpoint").config
    with pytest.raises(UnsupportedError, match=message):
        check_build(target, SIZES, config, model, load_recipe(recipe))


def test_blocks_that_were_not_compiled_are_refused(neutral: Path) -> None:
    recipe = parse_recipe('[parts.head]\nweights = "int4"\ngroup = 16', "mine", "mine")
    config = Checkpoint.open(HERE / "checkpoint").config
    with pytest.raises(UnsupportedError, match="no int4 in groups of 16"):
        check_build("rtx:sm89", SIZES, config, neutral / "model", recipe)


def test_a_plan_in_another_precision_fails_the_build(
    neutral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are fp16; a recipe that wants bf16 is not what they compute."""
    folder = shutil.copytree(neutral, tmp_path / "neutral")
    monkeypatch.setattr("engines.build.recipe_from_values", lambda *_: load_recipe("bf16"))
    with pytest.raises(GateError, match="of the multiply-adds are in the wanted precision"):
        build_target(folder, "rtx:sm89", SIZES)
    assert Artifact.open(folder).manifest.targets == {}


def test_inspect_names_what_plans_were_built_with_and_for(built: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(built)])
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    version = record_of(built).plans.version  # type: ignore[union-attr]  # it has plans
    assert {"plans 5", f"built with tensorrt_rtx {version}", "built for sm89, sm120"} <= set(lines)
