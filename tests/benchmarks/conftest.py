"""The shared artifact, also built for target `cuda`."""

import shutil
from pathlib import Path

import pytest

from engines.build import build_target
from engines.options import BuildOptions


@pytest.fixture(scope="session")
def for_cuda(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that must not be changed."""
    folder = tmp_path_factory.mktemp("gpu") / "artifact"
    shutil.copytree(artifact, folder)
    build_target(folder, "cuda", BuildOptions(max_tokens=64))
    return folder
