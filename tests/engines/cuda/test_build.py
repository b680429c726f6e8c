"""The build of target `cuda`: what it leaves, what it refuses, what is built again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from calibration.skip_norms import skip_norms
from calibration.verify import verify_artifact
from engines.build import build_target, check_build
from engines.cuda.decoder import join_decoder
from engines.cuda.passes.wide_features import WideFeatures
from engines.job import load_graph, write_graph
from engines.lowering import lower
from engines.options import BuildOptions, PlanOptions
from export.recipe.reading import load_recipe, parse_recipe
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.records import FileRecord
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError, InputError, UnsupportedError

from .conftest import SIZES


def test_the_manifest_names_every_graph_and_the_joined_one(built: Path) -> None:
    manifest = Artifact.open(built).manifest
    record = manifest.targets["cuda"]
    assert record.decoder == "graphs/decoder.cuda.onnx"
    assert record.graphs.keys() == manifest.graphs.keys()
    assert {record.decoder, *record.graphs.values()} <= manifest.files.keys()
    assert record.plans is None
    assert record.passes[0] == "coded-experts-by-share"
    assert record.passes[-1] == "skip-norms"
    assert manifest.targets["cpu"].decoder is None


def test_a_manifest_from_before_is_read_and_one_that_names_a_strange_decoder_is_not(
    built: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    fields = json.loads((folder / "manifest.json").read_text())
    del fields["targets"]["cpu"]["decoder"]
    (folder / "manifest.json").write_text(json.dumps(fields))
    assert Manifest.read(folder).targets["cpu"].decoder is None
    for strange, reason in ((3, "must be str, found int"), ("other.onnx", "not in `files`")):
        fields["targets"]["cuda"]["decoder"] = strange
        (folder / "manifest.json").write_text(json.dumps(fields))
        with pytest.raises(ArtifactError, match=reason):
            Manifest.read(folder)


def test_other_limits_are_noted_and_nothing_is_built_again(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    decoder = folder / "graphs/decoder.cuda.onnx"
    before = decoder.stat().st_mtime_ns
    manifest = build_target(folder, "cuda", replace(SIZES, max_slots=1))
    assert manifest.targets["cuda"].limits.max_slots == 1
    assert decoder.stat().st_mtime_ns == before


def test_a_build_that_was_stopped_before_the_joined_graph_goes_on(
    built: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    folder = shutil.copytree(artifact, tmp_path / "artifact")
    with monkeypatch.context() as patched:
        patched.setattr("engines.cuda.build.join_decoder", stop)
        with pytest.raises(KeyboardInterrupt):
            build_target(folder, "cuda", SIZES)
    layer = folder / "graphs/layer_01.cuda.onnx"
    before = layer.stat().st_mtime_ns
    manifest = build_target(folder, "cuda", SIZES)
    assert layer.stat().st_mtime_ns == before
    assert manifest.targets["cuda"] == Manifest.read(built).targets["cuda"]
    assert manifest.files == Manifest.read(built).files


def test_verify_measures_every_graph_on_the_kernels_of_the_cpu(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    figures = verify_artifact(folder, "cuda").parity["cuda"]
    assert figures.keys() == {*Manifest.read(built).graphs, names.DECODER}
    assert 0.0 < figures[names.DECODER] < 1e-6  # of sums and norms in one operator
    assert max(figures.values()) < 1e-5


def test_verify_refuses_a_decoder_whose_layers_are_in_another_order(
    built: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    manifest = Manifest.read(folder)
    record = manifest.targets["cuda"]
    assert record.decoder is not None
    first, *others = (names.layer_name(layer) for layer in manifest.layers)
    order = [first, *reversed(others)]
    assert len(others) > 1
    layers = [load_graph(folder / record.graphs[name]) for name in order]
    head = load_graph(folder / record.graphs[names.HEAD])
    write_graph(folder / record.decoder, join_decoder(layers, head, names.DECODER))
    files = {**manifest.files, record.decoder: FileRecord.of(folder / record.decoder)}
    replace(manifest, files=files).write(folder)
    with pytest.raises(ArtifactError, match=r"1 problem: decoder is off .* allowed 1e-05"):
        verify_artifact(folder, "cuda")


@pytest.mark.parametrize("place", [0, 1])
def test_verify_refuses_a_decoder_that_normalises_the_wrong_sum(
    place: int, built: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    manifest = Manifest.read(folder)
    path = "graphs/decoder.cuda.onnx"
    model = load_graph(folder / path)
    norm = skip_norms(model.graph)[place]
    norm.replace_input_with(1, norm.inputs[0])
    write_graph(folder / path, model)
    files = {**manifest.files, path: FileRecord.of(folder / path)}
    replace(manifest, files=files).write(folder)
    with pytest.raises(ArtifactError, match="1 problem: decoder"):
        verify_artifact(folder, "cuda")


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("int4-kv8", "no int8 cache: leaving parts.cache out would work"),
        ("fp8", "no fp8 "),
        ("nvfp4", "no nvfp4 "),
    ],
)
def test_a_recipe_with_formats_that_it_lacks_is_refused(
    recipe: str, reason: str, built: Path
) -> None:
    config = KimiVLConfig.load(built / "model" / "config.json")
    with pytest.raises(UnsupportedError, match=reason):
        check_build("cuda", BuildOptions(), config, built / "model", load_recipe(recipe))


def test_groups_that_were_not_tried_are_refused(built: Path) -> None:
    config = KimiVLConfig.load(built / "model" / "config.json")
    text = '[parts.experts]\nweights = "int4"\ngroup = 16'
    with pytest.raises(UnsupportedError, match="groups of 32, 64, 128 would work"):
        check_build("cuda", BuildOptions(), config, built / "model", parse_recipe(text, "m", "m"))


def test_options_about_plans_are_refused(built: Path) -> None:
    options = replace(SIZES, plans=PlanOptions(layers_per_engine=2, weights="embedded"))
    with pytest.raises(InputError, match="target cuda has no plans"):
        build_target(built, "cuda", options)


def test_features_leave_the_graph_in_fp32() -> None:
    text = '<ir_version: 11, opset_import: ["": 24]> g (float16[M] merged) => (float16[M] features)'
    model = ir.from_onnx_text(f"{text} {{ features = Relu (merged) }}")
    made = lower(model, [WideFeatures()]).model
    assert [(one.name, one.dtype) for one in made.graph.outputs] == [
        ("features", ir.DataType.FLOAT)
    ]
    again = lower(made.clone(), [WideFeatures()]).model
    assert [node.op_type for node in again.graph] == ["Relu", "Cast"]
