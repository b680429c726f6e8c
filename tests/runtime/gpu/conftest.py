"""Both engines on a GPU, on doubles of it, beside the engine on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.gpu.engine import GpuEngine
from runtime.engine.protocol import Engine, FloatArray
from tests.executing_trt import HostDevice
from tests.runtime.cuda.conftest import HOST
from tests.runtime.fed import CUDA_TOLERANCE, PLANS_TOLERANCE, check_close
from tests.runtime.trt.conftest import make_engine


class Kind(NamedTuple):
    """One of the engines."""

    artifact: str
    """The fixture that makes its artifact."""
    tolerance: float
    """Of the largest value."""
    open: Callable[[Path, HostDevice], GpuEngine]


KINDS = {
    "cuda": Kind(
        artifact="cuda_artifact",
        tolerance=CUDA_TOLERANCE,
        open=lambda folder, device: CudaEngine(Artifact.open(folder), provider=HOST, device=device),
    ),
    "trt": Kind(artifact="plans_artifact", tolerance=PLANS_TOLERANCE, open=make_engine),
}


class Pair:
    """An engine on a double, and the same model on the CPU."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.engine = self.open(HostDevice())
        self.truth = CpuEngine(Artifact.open(folder), num_threads=1)

    @property
    def both(self) -> tuple[Engine, Engine]:
        return self.engine, self.truth

    def open(self, device: HostDevice) -> GpuEngine:
        return self.kind.open(self.folder, device)

    def assert_close(self, found: FloatArray, expected: FloatArray) -> None:
        check_close(found, expected, self.kind.tolerance)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """One of each kind for all tests of a file: each uses slots of its own."""
    kind = KINDS[request.param]
    return Pair(kind, request.getfixturevalue(kind.artifact))
