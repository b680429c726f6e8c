"""A real server with the generated repository of the trained model, started once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import build_target
from engines.options import BuildOptions
from engines.triton.repository import RepositoryOptions, write_repository
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint
from tests.triton_server import TritonServer, reason_to_skip, running_server

NUM_SLOTS = 4
MODELS = ("kimi_vl", "kimi_vl_encoder", "kimi_vl_vision", "kimi_vl_projector")

STAND_IN = '''"""Runs a graph as the server's ONNX Runtime would, which the wheel does not have."""

from pathlib import Path

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        place = Path(args["model_repository"], args["model_version"], "model.onnx", "model.onnx")
        self.session = ort.InferenceSession(place)

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        names = [one.name for one in self.session.get_inputs()]
        given = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names
        }
        found = zip(self.session.get_outputs(), self.session.run(None, given))
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(one.name, value) for one, value in found]
        )
'''


@pytest.fixture(scope="session")
def nano_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp32 that must not be changed."""
    folder = tmp_path_factory.mktemp("triton") / "artifact"
    options = ExportOptions(recipe=load_recipe("fp32"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    build_target(
        folder, "cpu", BuildOptions(max_tokens=2048, max_slots=NUM_SLOTS, prefill_chunk=16)
    )
    return folder


@pytest.fixture(scope="session")
def repository(nano_artifact: Path) -> Path:
    """As generated, but the models of ONNX Runtime run in Python."""
    folder = nano_artifact.with_name("repository")
    write_repository(nano_artifact, folder, RepositoryOptions(encoder="onnx"))
    for name in ("kimi_vl_vision", "kimi_vl_projector"):
        config = folder / name / "config.pbtxt"
        text = config.read_text()
        assert 'backend: "onnxruntime"' in text
        config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
        (folder / name / "1" / "model.py").write_text(STAND_IN)
    shutil.copytree(folder / "kimi_vl_encoder", folder / "lonely")
    lonely = folder / "lonely" / "config.pbtxt"
    lonely.write_text(lonely.read_text().replace("kimi_vl_encoder", "lonely"))
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    log = repository.with_name("server.log")
    with running_server(repository, log=log, models=MODELS) as running:
        yield running
