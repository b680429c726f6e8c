"""The trained model, built for two cards by TensorRT-RTX, on a double that executes."""

import shutil
from pathlib import Path

import pytest

from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.trt.engine import TensorRTEngine
from tests.executing_trt import HostDevice, executing_package
from tests.runtime.conftest import PLANS_TARGET


@pytest.fixture(scope="session")
def built(plans_artifact: Path) -> Path:
    """Must not be changed."""
    return plans_artifact


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(built, tmp_path / "artifact")


def make_engine(folder: Path, device: HostDevice) -> TensorRTEngine:
    """Open the plans of an artifact on a double."""
    artifact = Artifact.open(folder)
    package = executing_package(artifact, PLANS_TARGET, device)
    return TensorRTEngine(artifact, PLANS_TARGET, package=package, device=device)


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
