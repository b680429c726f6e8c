"""The trained model, built for target `cuda`, on the CPU's kernels of the same graphs."""

from pathlib import Path

import pytest

from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.cuda.provider import Provider
from tests.executing_trt import HostDevice

HOST = Provider(name="CPUExecutionProvider", device_type="cpu", can_record=True)
"""The CPU takes the number of a recording and runs all the same."""


@pytest.fixture(scope="session")
def built(cuda_artifact: Path) -> Path:
    """Must not be changed."""
    return cuda_artifact


@pytest.fixture(scope="module")
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(scope="module")
def engine(built: Path, device: HostDevice) -> CudaEngine:
    """One for all tests of a file: each uses slots of its own."""
    return CudaEngine(Artifact.open(built), provider=HOST, device=device)


@pytest.fixture(scope="module")
def truth(built: Path) -> CpuEngine:
    """The same model as target `cpu`."""
    return CpuEngine(Artifact.open(built), num_threads=1)
