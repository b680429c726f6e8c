"""The trained model with four slots, for tests that want real steps."""

from pathlib import Path

import pytest

from engines.build import build_target
from engines.options import BuildOptions
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint

CUDA_SIZES = BuildOptions(max_tokens=1200, max_slots=4, prefill_chunk=16)
PLANS_SIZES = BuildOptions(max_tokens=256, max_slots=4, prefill_chunk=16)
PLANS_TARGET = "rtx:sm89+sm120"


def export_nano(folder: Path, recipe: str) -> None:
    """Make an artifact of the trained model."""
    options = ExportOptions(recipe=load_recipe(recipe))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp32 that must not be changed."""
    folder = tmp_path_factory.mktemp("nano") / "artifact"
    export_nano(folder, "fp32")
    build_target(folder, "cpu", BuildOptions(max_tokens=320, max_slots=4, prefill_chunk=16))
    return folder


@pytest.fixture(scope="session")
def cuda_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp32 that must not be changed: targets cpu and cuda."""
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    export_nano(folder, "fp32")
    for target in ("cpu", "cuda"):
        build_target(folder, target, CUDA_SIZES)
    return folder


@pytest.fixture(scope="session")
def plans_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp16 that must not be changed: targets cpu and two cards of TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("plans") / "artifact"
    export_nano(folder, "fp16")
    for target in ("cpu", PLANS_TARGET):
        build_target(folder, target, PLANS_SIZES)
    return folder
