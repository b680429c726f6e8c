"""The trained model, built for target `cuda`, on the CPU's kernels of the same graphs."""

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
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.cuda.provider import Provider
from tests.executing_trt import HostDevice

SIZES = BuildOptions(max_tokens=1200, max_slots=4, prefill_chunk=16)
HOST = Provider(name="CPUExecutionProvider", device_type="cpu", can_record=True)
"""The CPU takes the number of a recording and runs all the same."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp32 that must not be changed: targets cpu and cuda."""
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    options = ExportOptions(recipe=load_recipe("fp32"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    for target in ("cpu", "cuda"):
        build_target(folder, target, SIZES)
    return folder


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
