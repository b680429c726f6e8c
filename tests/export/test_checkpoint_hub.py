from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from export.checkpoint.reader import Checkpoint
from runtime.errors import CheckpointError
from tests.export.checkpoint_files import Draft


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.mark.usefixtures("empty_cache")
def test_offline_and_not_in_the_cache_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing: no such folder, and the") as caught:
        Checkpoint.open("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_snapshot_in_the_cache_is_used_offline(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789012345678901234567890123456789"
    model = empty_cache / "models--somebody--model"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    Draft(snapshot).write()
    assert Checkpoint.open("somebody/model").folder == snapshot
    assert Checkpoint.open("somebody/model", revision=commit).folder == snapshot


def test_only_the_files_that_are_read_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: object) -> str:
        asked.update(options, hub_id=hub_id)
        return str(Draft(tmp_path).write())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Checkpoint.open("somebody/model", revision="v1")
    assert (asked["hub_id"], asked["revision"]) == ("somebody/model", "v1")
    listing = ["config.json", "tiktoken.model", "model-00001-of-00007.safetensors"]
    listing += ["modeling_kimi_vl.py", "pytorch_model.bin", "README.md", "other.safetensors"]
    kept = [name for name in listing if any(fnmatch(name, p) for p in asked["allow_patterns"])]
    assert kept == listing[:3]


@pytest.mark.usefixtures("empty_cache")
def test_any_failure_of_the_hub_library_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(hub_id: str, **options: object) -> str:
        raise RuntimeError(f"{hub_id} broke\nin two lines {len(options)}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    words = "the hub did not give the files: RuntimeError: a/b broke in two lines 2"
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open("a/b")


def test_a_local_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("somebody/model")
    folder.mkdir(parents=True)
    Draft(folder).write()
    assert Checkpoint.open("somebody/model").folder == folder


def test_a_path_is_never_looked_up_on_the_hub(tmp_path: Path) -> None:
    for source in (tmp_path / "absent", str(tmp_path / "absent"), Path("some/where")):
        with pytest.raises(CheckpointError, match=r"no such folder; give a checkpoint folder or"):
            Checkpoint.open(source)


def test_a_file_is_not_a_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a folder; give a"):
        Checkpoint.open(tmp_path / "model.safetensors")


def test_a_folder_with_a_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder has no revision 'v1'; leave it out"):
        Checkpoint.open(Draft(tmp_path).write(), revision="v1")
