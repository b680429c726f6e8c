"""What `tool.py triton` writes: exact configurations, whole folders, refusals by name."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from onnx import helper
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from engines.triton import encoder
from engines.triton.config_text import Symbol, config_text, map_field
from engines.triton.repository import Encoder, RepositoryOptions, write_repository
from runtime import files
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.records import BoundWeight, FileRecord, PlanRecord, PlansRecord
from runtime.errors import ArtifactError, CapacityError, InputError, KimiVLError, UnsupportedError
from runtime.triton import tensors
from tool import app

Config = Any


def read_config(folder: Path) -> Config:
    """Parse a configuration with the server's own schema, which refuses what it does not know."""
    config = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(), config)
    return config


def types_of(declared: Any) -> dict[str, tuple[str, list[int]]]:  # noqa: ANN401
    names = model_config_pb2.DataType.Name
    return {one.name: (names(one.data_type), list(one.dims)) for one in declared}


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(artifact: Path, folder: Path, **options: Any) -> list[str]:  # noqa: ANN401
    return write_repository(artifact, folder, RepositoryOptions(**options))


def with_plans(
    artifact: Path, folder: Path, *, package: str, target: str, is_external: bool = False
) -> Path:
    """An artifact with made-up plans, for what is decided by the manifest alone."""
    shutil.copytree(artifact, folder)
    manifest = Manifest.read(folder)
    cpu = manifest.targets["cpu"]
    weights = {"w": BoundWeight(path=manifest.embedding.path, offset=0, length=16)}
    plans, records = {}, {}
    for name in cpu.graphs:
        path = folder / "engines" / f"{name}.plan"
        files.write_bytes(path, f"plan of {name}".encode())
        files.write_bytes(path.with_suffix(".json"), json.dumps({"profiles": [{}, {}]}).encode())
        for made in (path, path.with_suffix(".json")):
            records[made.relative_to(folder).as_posix()] = FileRecord.of(made)
        plans[name] = PlanRecord(
            path=f"engines/{name}.plan", graphs=(name,), weights=weights if is_external else {}
        )
    made_with = PlansRecord(
        package=package, version="11.0", sms=("sm90",), engines=plans, wanted_precision=1.0
    )
    manifest.with_target(target, replace(cpu, plans=made_with), records).write(folder)
    return folder


def test_the_conversational_model_is_configured_as_the_code_reads_it(
    artifact: Path, tmp_path: Path
) -> None:
    assert write(artifact, tmp_path / "models") == ["kimi_vl"]
    config = read_config(tmp_path / "models" / "kimi_vl")
    assert (config.name, config.backend, config.max_batch_size) == ("kimi_vl", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [group.count for group in config.instance_group] == [1]
    assert types_of(config.input) == {
        one.name: (one.data_type, list(one.dims)) for one in tensors.INPUTS
    }
    assert all(one.optional for one in config.input)
    assert types_of(config.output)["token_ids"] == ("TYPE_INT64", [-1])
    values = {name: one.string_value for name, one in config.parameters.items()}
    manifest = (artifact / "manifest.json").read_bytes()
    assert values["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert (values["artifact"], values["target"]) == ("artifact", "cpu")


def test_the_artifact_inside_is_whole_and_leaves_the_first_as_it_was(
    artifact: Path, tmp_path: Path
) -> None:
    write(artifact, tmp_path / "models")
    inside = tmp_path / "models" / "kimi_vl" / "1" / "artifact"
    Artifact.open(inside)
    table = Manifest.read(inside).embedding.path
    assert (inside / table).read_bytes() == (artifact / table).read_bytes()
    assert (artifact / table).stat().st_nlink == 1  # onnx-ir takes no weights with two names
    write(artifact, tmp_path / "models")  # again, with what opening it left inside


def test_an_artifact_elsewhere_is_only_named(artifact: Path, tmp_path: Path) -> None:
    write(artifact, tmp_path / "models", artifact_at=Path("/models/artifact"), name="vl.2")
    assert {path.name for path in (tmp_path / "models" / "vl.2" / "1").iterdir()} == {"model.py"}
    config = read_config(tmp_path / "models" / "vl.2")
    assert config.parameters["artifact"].string_value == "/models/artifact"


def test_graphs_for_onnx_runtime_are_declared_as_they_are(artifact: Path, tmp_path: Path) -> None:
    models = write(artifact, tmp_path / "models", encoder="onnx")
    assert models == ["kimi_vl", "kimi_vl_encoder", "kimi_vl_projector", "kimi_vl_vision"]
    for stage in ("vision", "projector"):
        folder = tmp_path / "models" / f"kimi_vl_{stage}"
        config = read_config(folder)
        assert config.backend == "onnxruntime"
        assert config.optimization.graph.level == -1
        kinds = [
            model_config_pb2.ModelInstanceGroup.Kind.Name(g.kind) for g in config.instance_group
        ]
        assert kinds == ["KIND_CPU"]
        graph = onnx.load(
            folder / "1" / "model.onnx" / "model.onnx", load_external_data=False
        ).graph
        weights = folder / "1" / "model.onnx" / "weights" / f"{stage}.bin"
        original = artifact / "graphs" / "weights" / f"{stage}.bin"
        assert weights.read_bytes() == original.read_bytes()
        for declared, values in ((config.input, graph.input), (config.output, graph.output)):
            for one, value in zip(declared, values, strict=True):
                tensor = value.type.tensor_type
                assert one.name == value.name
                assert model_config_pb2.DataType.Name(one.data_type) == "TYPE_FP32"
                assert tensor.elem_type == onnx.TensorProto.FLOAT
                assert list(one.dims) == [size.dim_value or -1 for size in tensor.shape.dim]
    pipeline = read_config(tmp_path / "models" / "kimi_vl_encoder")
    assert not pipeline.model_transaction_policy.decoupled
    projector = read_config(tmp_path / "models" / "kimi_vl_projector")
    assert types_of(pipeline.output)["features"] == types_of(projector.output)["features"]
    assert pipeline.parameters["vision_model"].string_value == "kimi_vl_vision"


def test_plans_of_target_trt_are_declared_with_their_profiles(
    artifact: Path, tmp_path: Path
) -> None:
    folder = with_plans(artifact, tmp_path / "artifact", package="tensorrt", target="trt")
    write(folder, tmp_path / "models", target="trt", encoder="plan")
    config = read_config(tmp_path / "models" / "kimi_vl_vision")
    assert config.platform == "tensorrt_plan"
    (group,) = config.instance_group
    assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_GPU"
    assert list(group.profile) == ["0", "1"]
    assert types_of(config.input)["patches"] == ("TYPE_FP32", [-1, -1, 588])
    plan = tmp_path / "models" / "kimi_vl_vision" / "1" / "model.plan"
    assert plan.read_bytes() == b"plan of vision"


@pytest.mark.parametrize(
    ("package", "target", "is_external", "encoder", "message"),
    [
        ("tensorrt", "trt", True, "plan", "vision, projector take their weights as inputs"),
        ("tensorrt_rtx", "rtx:sm89", False, "plan", "no backend for plans of tensorrt_rtx"),
        ("tensorrt", "trt", False, None, "target cpu has no plans"),
    ],
)
def test_plans_that_the_server_cannot_run_are_refused_by_name(
    package: str,
    target: str,
    is_external: bool,
    encoder: Encoder | None,
    message: str,
    artifact: Path,
    tmp_path: Path,
) -> None:
    folder = with_plans(
        artifact, tmp_path / "artifact", package=package, target=target, is_external=is_external
    )
    asked = target if encoder else "cpu"
    with pytest.raises(UnsupportedError, match=message):
        write(folder, tmp_path / "models", target=asked, encoder=encoder or "plan")
    assert not (tmp_path / "models").exists()


def with_changed_graph(
    artifact: Path, folder: Path, change: Callable[[onnx.ModelProto], None]
) -> Path:
    shutil.copytree(artifact, folder)
    manifest = Manifest.read(folder)
    path = folder / manifest.graphs["vision"]
    model = onnx.load(path, load_external_data=False)
    change(model)
    files.write_bytes(path, model.SerializeToString())
    changed = {**manifest.files, manifest.graphs["vision"]: FileRecord.of(path)}
    replace(manifest, files=changed).write(folder)
    return folder


def use_custom_op(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Router", [], ["nothing"], domain="kimivl"))


def use_later_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = encoder.MAX_OPSET + 1


def use_later_format(model: onnx.ModelProto) -> None:
    model.ir_version = encoder.MAX_IR_VERSION + 1


def use_bf16(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (use_custom_op, "vision: ops of the domain kimivl"),
        (use_later_opset, "vision: opset 25, at most 24"),
        (use_later_format, "vision: IR version 13, at most 12"),
        (use_bf16, "vision: bf16, which it does not multiply on the CPU"),
    ],
)
def test_graphs_that_the_servers_onnx_runtime_does_not_take_are_refused(
    change: Callable[[onnx.ModelProto], None], message: str, artifact: Path, tmp_path: Path
) -> None:
    folder = with_changed_graph(artifact, tmp_path / "artifact", change)
    with pytest.raises(UnsupportedError, match=message):
        write(folder, tmp_path / "models", encoder="onnx")


def test_the_same_again_changes_nothing_and_anything_else_is_refused(
    artifact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    write(artifact, folder)
    before = contents(folder)
    cache = folder / "kimi_vl" / "1" / "__pycache__" / "model.cpython-311.pyc"
    cache.parent.mkdir()
    cache.write_bytes(b"left by a server")
    write(artifact, folder)
    shutil.rmtree(cache.parent)
    with pytest.raises(KimiVLError, match=r"kimi_vl_encoder/1/model.py is missing.*nothing was"):
        write(artifact, folder, encoder="onnx")
    (folder / "other").mkdir()
    (folder / "other" / "config.pbtxt").write_text("")
    with pytest.raises(KimiVLError, match=r"other/config.pbtxt is not ours"):
        write(artifact, folder)
    shutil.rmtree(folder / "other")
    assert contents(folder) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(KimiVLError, match="is a file"):
        write(artifact, tmp_path / "file")


def test_a_file_with_the_size_and_time_of_ours_but_other_bytes_is_refused(
    artifact: Path, tmp_path: Path
) -> None:
    write(artifact, tmp_path / "models")
    inside = tmp_path / "models" / "kimi_vl" / "1" / "artifact"
    table = inside / Manifest.read(inside).embedding.path
    status, content = table.stat(), bytearray(table.read_bytes())
    os.utime(table, (0, 0))
    write(artifact, tmp_path / "models")  # another time, the same bytes
    content[0] ^= 1
    table.write_bytes(content)
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(KimiVLError, match=f"{table.name} differs"):
        write(artifact, tmp_path / "models")


def test_folders_that_cannot_be_replaced_are_refused_before_anything_is_copied(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(KimiVLError, match="you are in it"):
        write(artifact, Path())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KimiVLError, match=r"is a mount point or no folder"):
        write(artifact, tmp_path / "loop")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "real")
    with pytest.raises(KimiVLError, match=r"real: is a mount point"):
        write(artifact, tmp_path / "link")
    assert contents(tmp_path) == {}
    monkeypatch.undo()
    write(artifact, tmp_path / "link")
    assert (tmp_path / "real" / "kimi_vl" / "config.pbtxt").is_file()
    assert (tmp_path / "link").is_symlink()


class KilledError(Exception):
    """Ends a run as a kill would."""


@pytest.mark.parametrize("event", ["after config.pbtxt", "after vision.bin", "before models"])
def test_a_killed_run_leaves_no_repository_and_goes_on(
    event: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(seen: str) -> None:
        if seen == event:
            raise KilledError

    write(artifact, tmp_path / "expected")
    monkeypatch.setattr(files, "on_event", kill)
    with pytest.raises(KilledError):
        write(artifact, tmp_path / "models")
    monkeypatch.undo()
    assert not (tmp_path / "models").exists()
    write(artifact, tmp_path / "models")
    assert contents(tmp_path / "models") == contents(tmp_path / "expected")
    assert not (tmp_path / "models.part").exists()


def test_what_the_disk_has_no_room_for_is_not_begun(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match=r"are needed and 1000 are free.*--artifact-at"):
        write(artifact, tmp_path / "models")
    assert contents(tmp_path) == {}


def test_wrong_names_and_targets_are_refused(artifact: Path, tmp_path: Path) -> None:
    for name in ("", "a/b", ".a", "a b"):
        with pytest.raises(InputError, match="model name"):
            RepositoryOptions(name=name)
    for place in ("", "relative/artifact", "/x\udcff"):
        with pytest.raises(InputError, match="expected an absolute path in UTF-8"):
            RepositoryOptions(artifact_at=Path(place))
    with pytest.raises(ArtifactError, match="not built for target 'rtx:sm89'"):
        write(artifact, tmp_path / "models", target="rtx:sm89")


def test_the_command_names_the_models_and_what_comes_next(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    done = CliRunner().invoke(app, ["triton", str(artifact), str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"repository": str(folder), "models": ["kimi_vl"]}
    assert f"tritonserver --model-repository={folder}" in done.stderr


def test_text_is_quoted_and_lists_of_messages_are_repeated() -> None:
    fields = {
        "name": 'a "b" \\ é',
        "max_batch_size": 3,
        "input": [{"name": "x", "data_type": Symbol("TYPE_FP32"), "dims": (1, -1)}],
        "model_transaction_policy": {"decoupled": True},
        "parameters": map_field({"k": {"string_value": "line\nline"}}),
    }
    config = model_config_pb2.ModelConfig()
    text_format.Parse(config_text(fields), config)
    assert config.name == 'a "b" \\ é'
    assert list(config.input[0].dims) == [1, -1]
    assert config.parameters["k"].string_value == "line\nline"
    assert config.model_transaction_policy.decoupled
