"""The image encoder as models of the server's own backends, and a pipeline over them.

image ─► NAME_encoder (Python) ─► NAME_vision ─► NAME_projector ─► features
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx_ir as ir

from export.graph.edits import given
from runtime import names
from runtime.artifact.folder import CONFIG_FILE, Artifact
from runtime.artifact.manifest import MODEL_FOLDER
from runtime.artifact.records import PlansRecord
from runtime.errors import ArtifactError, UnsupportedError, describe_problems
from runtime.json_file import read_json_object
from runtime.prompt.patches import RULE_FILE
from runtime.triton import tensors

from ..job import load_graph
from .config_text import Symbol, config_text, map_field
from .conversation import CONFIG, VERSION, model_code, tensor_fields
from .files import Files

ONNX_RUNTIME = ("1.24.4", "1.27.0")
"""Of the servers 26.04 to 26.06, and 26.07: the graphs ran in both, from PyPI, on the CPU.

Source: https://github.com/triton-inference-server/server (docs/introduction/compatibility.md).
"""
MAX_OPSET = 24
MAX_IR_VERSION = 12
"""What the first of them takes at least: those of ONNX 1.19."""

_BASIC = -1
"""Level of optimisation. Those above it replace quantised matrices by products that round."""
_TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BFLOAT16: "TYPE_BF16",
}
_STAGES = (names.VISION, names.PROJECTOR)


@dataclass(frozen=True, kw_only=True)
class EncoderNames:
    """Models of an encoder."""

    vision: str
    projector: str
    pipeline: str

    @classmethod
    def of(cls, name: str) -> "EncoderNames":
        """Name them after the conversational model."""
        return cls(
            vision=f"{name}_{names.VISION}",
            projector=f"{name}_{names.PROJECTOR}",
            pipeline=f"{name}_encoder",
        )


def onnx_encoder_files(artifact: Artifact, name: str, target: str) -> Files:
    """List the files of an encoder that the server's ONNX Runtime runs: the neutral graphs.

    Args:
        artifact: opened.
        name: of the conversational model.
        target: on the CPU for `cpu`, on a GPU for others.

    Raises:
        UnsupportedError: the graphs are nothing that the server's ONNX Runtime takes.
    """
    graphs = artifact.manifest.graphs
    models = {stage: load_graph(artifact.folder / graphs[stage]) for stage in _STAGES}
    is_cpu = target == "cpu"
    problems = [
        f"{stage}: {problem}"
        for stage, model in models.items()
        for problem in _onnx_problems(model, is_cpu=is_cpu)
    ]
    if problems:
        raise UnsupportedError(
            describe_problems(f"ONNX Runtime {ONNX_RUNTIME[0]} of the server", problems)
            + "; --encoder inside works"
        )
    files: Files = {}
    for stage, model in models.items():
        model_name = getattr(EncoderNames.of(name), stage)
        config = {
            "backend": "onnxruntime",
            "max_batch_size": 0,
            **_borders(model),
            "instance_group": [{"count": 1, "kind": Symbol("KIND_CPU" if is_cpu else "KIND_GPU")}],
            "optimization": {"graph": {"level": _BASIC}},
        }
        files[f"{model_name}/{CONFIG}"] = config_text({"name": model_name, **config}).encode()
        # A model of several files is a folder with the name of the file.
        place = f"{model_name}/{VERSION}/model.onnx"
        files[f"{place}/model.onnx"] = artifact.folder / graphs[stage]
        folder = PurePosixPath(graphs[stage]).parent
        for location in _locations(model):
            files[f"{place}/{location}"] = artifact.folder / folder / location
    return files | _pipeline_files(artifact, name, target, models[names.PROJECTOR])


def plan_encoder_files(artifact: Artifact, name: str, target: str) -> Files:
    """List the files of an encoder that the server's TensorRT runs: the plans of target `trt`.

    Args:
        artifact: opened, and built for the target.
        name: of the conversational model.
        target: any; only `trt` has such plans.

    Raises:
        UnsupportedError: the target has none that the server can run.
    """
    record = artifact.target(target)
    plans = _check_plans(target, record.plans)
    models = {stage: load_graph(artifact.folder / record.graphs[stage]) for stage in _STAGES}
    files: Files = {}
    for stage, model in models.items():
        model_name = getattr(EncoderNames.of(name), stage)
        plan = artifact.folder / plans.engines[stage].path
        profiles = [str(index) for index in range(_num_profiles(plan))]
        config = {
            "platform": "tensorrt_plan",
            "max_batch_size": 0,
            **_borders(model),
            "instance_group": [{"count": 1, "kind": Symbol("KIND_GPU"), "profile": profiles}],
        }
        files[f"{model_name}/{CONFIG}"] = config_text({"name": model_name, **config}).encode()
        files[f"{model_name}/{VERSION}/model.plan"] = plan
    return files | _pipeline_files(artifact, name, target, models[names.PROJECTOR])


def _check_plans(target: str, plans: PlansRecord | None) -> PlansRecord:
    if plans is None:
        raise UnsupportedError(f"target {target} has no plans: --encoder inside or onnx works")
    if plans.package != "tensorrt":
        raise UnsupportedError(
            f"target {target}: the server has no backend for plans of {plans.package}; the "
            "conversational model runs them itself (--encoder inside), and --encoder onnx works"
        )
    bound = [stage for stage in _STAGES if plans.engines[stage].weights]
    if bound:
        raise UnsupportedError(
            f"target {target}: plans of {', '.join(bound)} take their weights as inputs, which "
            "the server has no way to bind; build with --weights embedded"
        )
    return plans


def _onnx_problems(model: ir.Model, *, is_cpu: bool) -> list[str]:
    opset = model.opset_imports.get("", 0)
    domains = sorted({node.domain for node in model.graph} - {"", "ai.onnx"})
    problems = [f"ops of the domain {domain}" for domain in domains]
    if opset > MAX_OPSET:
        problems.append(f"opset {opset}, at most {MAX_OPSET} is known")
    if model.ir_version > MAX_IR_VERSION:
        problems.append(f"IR version {model.ir_version}, at most {MAX_IR_VERSION} is known")
    types = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    if is_cpu and ir.DataType.BFLOAT16 in types:
        problems.append("bf16, which it does not multiply on the CPU")
    return problems


def _borders(model: ir.Model) -> dict[str, object]:
    return {
        "input": [_tensor(value) for value in model.graph.inputs],
        "output": [_tensor(value) for value in model.graph.outputs],
    }


def _tensor(value: ir.Value) -> dict[str, object]:
    """Describe an input or output: types as in the graph, sizes that are free as -1."""
    sizes = [size if isinstance(size, int) else -1 for size in given(value.shape)]
    return {
        "name": str(value.name),
        "data_type": Symbol(_TYPES[given(value.dtype)]),
        "dims": sizes,
    }


def _locations(model: ir.Model) -> set[str]:
    """List the files that a graph's weights lie in, as it names them."""
    tensors_of_graph = (value.const_value for value in model.graph.initializers.values())
    return {str(one.location) for one in tensors_of_graph if isinstance(one, ir.ExternalTensor)}


def _num_profiles(plan: Path) -> int:
    """Read how many profiles a plan was built with, from what lies beside it.

    Raises:
        ArtifactError: the file does not say.
    """
    path = plan.with_suffix(".json")
    profiles: Any = read_json_object(path).get("profiles")
    if not isinstance(profiles, list) or not profiles:
        raise ArtifactError(f"{path}: names no profiles; build the target again")
    return len(profiles)


def _pipeline_files(artifact: Artifact, name: str, target: str, projector: ir.Model) -> Files:
    called = EncoderNames.of(name)
    parameters = {
        tensors.VISION_MODEL: called.vision,
        tensors.PROJECTOR_MODEL: called.projector,
        tensors.MAX_PATCHES: str(artifact.target(target).limits.max_patches),
    }
    config = config_text(
        {
            "name": called.pipeline,
            "backend": "python",
            "max_batch_size": 0,
            "input": tensor_fields([tensors.IMAGE]),
            "output": [_tensor(projector.graph.outputs[0]), *tensor_fields([tensors.GRID])],
            "instance_group": [{"count": 1, "kind": Symbol("KIND_CPU")}],
            "parameters": map_field(
                {key: {"string_value": value} for key, value in parameters.items()}
            ),
        }
    )
    place = f"{called.pipeline}/{VERSION}"
    checkpoint = {
        f"{place}/{tensors.MODEL_FOLDER}/{file}": artifact.folder / MODEL_FOLDER / file
        for file in (CONFIG_FILE, RULE_FILE)
    }
    return {
        f"{called.pipeline}/{CONFIG}": config.encode(),
        f"{place}/model.py": model_code("encoder", "ImageEncoderModel"),
        **checkpoint,
    }
