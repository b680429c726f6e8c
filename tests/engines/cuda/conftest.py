"""The small artifact, built for target `cuda` as well."""

import shutil
from pathlib import Path

import pytest

from engines.build import build_target
from engines.options import BuildOptions

SIZES = BuildOptions(max_tokens=64, max_slots=3, prefill_chunk=8)


@pytest.fixture(scope="session")
def built(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp32 that must not be changed, with targets cpu and cuda."""
    folder = shutil.copytree(artifact, tmp_path_factory.mktemp("cuda") / "artifact")
    build_target(folder, "cuda", SIZES)
    return folder
