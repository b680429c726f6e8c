"""The trained model, built for two cards by TensorRT-RTX, on a double that executes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.build import build_target
from engines.options import BuildOptions
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.trt.engine import TensorRTEngine
from tests.executing_trt import HostDevice, executing_package

TARGET = "rtx:sm89+sm120"
SIZES = BuildOptions(max_tokens=256, max_slots=4, prefill_chunk=16)

MakeEngine = Callable[[Path, HostDevice], TensorRTEngine]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp16 that must not be changed: targets cpu and `TARGET`."""
    folder = tmp_path_factory.mktemp("plans") / "artifact"
    options = ExportOptions(recipe=load_recipe("fp16"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    build_target(folder, "cpu", SIZES)
    build_target(folder, TARGET, SIZES)
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(built, tmp_path / "artifact")


def make_engine(folder: Path, device: HostDevice) -> TensorRTEngine:
    """Open the plans of an artifact on a double."""
    artifact = Artifact.open(folder)
    package = executing_package(artifact, TARGET, device)
    return TensorRTEngine(artifact, TARGET, package=package, device=device)


@pytest.fixture(scope="module")
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(scope="module")
def engine(built: Path, device: HostDevice) -> TensorRTEngine:
    """One for all tests of a file: each uses slots of its own."""
    return make_engine(built, device)


@pytest.fixture(scope="module")
def truth(built: Path) -> CpuEngine:
    """The same model on the CPU."""
    return CpuEngine(Artifact.open(built), num_threads=1)
