"""The trained model with four slots, for tests that want real steps."""

from pathlib import Path

import pytest

from engines.build import build_target
from engines.options import BuildOptions
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in fp32 that must not be changed."""
    folder = tmp_path_factory.mktemp("nano") / "artifact"
    options = ExportOptions(recipe=load_recipe("fp32"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    build_target(folder, "cpu", BuildOptions(max_tokens=320, max_slots=4, prefill_chunk=16))
    return folder
