"""Two runs in one folder: neither writes over what the other has done."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calibration.verify import verify_artifact
from engines.build import build_target
from engines.options import BuildOptions
from runtime.artifact.manifest import Manifest
from runtime.errors import ArtifactError, KimiVLError
from runtime.files import exclusive


def build(folder: Path) -> Manifest:
    return build_target(folder, "cpu", BuildOptions(max_tokens=128))


CHANGES: dict[str, Callable[[Path], Manifest]] = {"build": build, "verify": verify_artifact}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_may_be_written_is_read_behind_the_lock(
    change: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_locked: list[bool] = []
    read = Manifest.read

    def seen(folder: Path) -> Manifest:
        try:
            with exclusive(folder):
                was_locked.append(False)
        except KimiVLError:
            was_locked.append(True)
        return read(folder)

    monkeypatch.setattr(Manifest, "read", seen)
    CHANGES[change](copied)
    assert was_locked == [True]


def test_a_build_beside_a_verification_is_refused_instead_of_lost(copied: Path) -> None:
    refusals: list[str] = []

    def build_beside(stage: str, done: int, total: int) -> None:
        if stage == "verify" and not refusals:
            with pytest.raises(KimiVLError, match="another run is writing here") as caught:
                build(copied)
            refusals.append(str(caught.value))

    verified = verify_artifact(copied, progress=build_beside)
    assert len(refusals) == 1
    assert Manifest.read(copied) == verified
    assert build(copied).targets["cpu"].limits.max_tokens == 128


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_is_not_there_is_not_made_for_its_lock(change: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        CHANGES[change](tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
