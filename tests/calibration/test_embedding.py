"""Verify looks at the embedding table as the runtime reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from calibration.verify import verify_artifact
from engines.build import build_target
from engines.options import BuildOptions
from export.checkpoint.reader import Checkpoint
from export.recipe.recipe import Recipe
from export.stage import ExportOptions, export_checkpoint
from export.synthetic.folder import write_synthetic
from runtime.errors import ArtifactError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One decoder layer of the tiny shape in bf16."""
    folder = tmp_path_factory.mktemp("bf16")
    checkpoint = Checkpoint.open(write_synthetic(folder / "checkpoint", shape="tiny", seed=5))
    wanted = ExportOptions(recipe=Recipe(name="bf16", base="bf16"), layers=(0,))
    export_checkpoint(checkpoint, folder / "made", wanted)
    build_target(folder / "made", "cpu", BuildOptions())
    return folder / "made"


@pytest.fixture
def restored(made: Path) -> Path:
    """The manifest as the build left it."""
    kept = made.parent / "kept.json"
    if not kept.exists():
        kept.write_bytes((made / "manifest.json").read_bytes())
    (made / "manifest.json").write_bytes(kept.read_bytes())
    return made


def _change(folder: Path, **changes: Any) -> None:  # noqa: ANN401  JSON
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    fields["embedding"].update(changes)
    path.write_text(json.dumps(fields))


def test_a_table_that_is_read_as_it_was_written_is_off_by_nothing(restored: Path) -> None:
    assert verify_artifact(restored).parity["cpu"]["embedding"] == 0.0


def test_a_table_whose_type_is_misnamed_is_found(restored: Path) -> None:
    _change(restored, dtype="float16")
    with pytest.raises(ArtifactError, match=r"1 problem: embedding is off by \S+, allowed 0e\+00"):
        verify_artifact(restored)


def test_a_table_of_another_shape_with_as_many_numbers_is_found(restored: Path) -> None:
    _change(restored, shape=[2 * 756, 32])
    with pytest.raises(ArtifactError, match="1 problem: embedding is off by inf"):
        verify_artifact(restored)
