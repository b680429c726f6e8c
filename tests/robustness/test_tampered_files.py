"""Files of an artifact that were altered, cut, lost or exchanged: who notices, and what it says."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from calibration.verify import verify_artifact
from runtime import Session
from runtime.artifact.folder import Artifact
from runtime.errors import ArtifactError, NumericError

from .conftest import WarmTool, assert_named_error, tree
from .tampering import flip_a_byte, flip_a_byte_and_restore_the_time, put_in_place

GRAPHS = ("vision", "projector", "layer_00", "layer_01", "head")
QUESTION = [{"role": "user", "content": "How many?"}]
WEIGHTS = "graphs/weights/layer_01.cpu.bin"


@pytest.mark.parametrize("suffix", [".onnx", ".cpu.onnx"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_one_changed_byte_of_a_graph_is_noticed_at_open(
    graph: str, suffix: str, copied: Path
) -> None:
    name = f"graphs/{graph}{suffix}"
    flip_a_byte(copied / name)
    with pytest.raises(ArtifactError, match=rf"1 problem: {name} does not have the SHA-256"):
        Artifact.open(copied)


@pytest.mark.parametrize("name", ["config.json", "tiktoken.model", "chat_template.jinja"])
def test_one_changed_byte_of_a_small_file_is_noticed_at_open(name: str, copied: Path) -> None:
    flip_a_byte(copied / "model" / name)
    with pytest.raises(ArtifactError, match=f"model/{name} does not have the SHA-256"):
        Session.open(copied)


def test_changed_weights_with_a_new_time_are_noticed_at_open(copied: Path) -> None:
    Artifact.open(copied)
    flip_a_byte(copied / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} does not have the SHA-256"):
        Artifact.open(copied)


def test_changed_weights_with_the_old_time_are_noticed_by_verify_alone(
    tool: WarmTool, copied: Path
) -> None:
    Artifact.open(copied)
    flip_a_byte_and_restore_the_time(copied / WEIGHTS)
    Artifact.open(copied)  # as docs/artifact.md says: hashing weights at each open takes too long
    assert_named_error(tool("verify", copied), f"{WEIGHTS} does not have the SHA-256")


def test_weights_that_nobody_checked_yet_are_hashed_at_open(copied: Path) -> None:
    (copied / ".checked.json").unlink()
    flip_a_byte_and_restore_the_time(copied / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} does not have the SHA-256"):
        Artifact.open(copied)


@pytest.mark.parametrize("notes", [b"", b"[]", b"{", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_damaged_notes_of_earlier_checks_mean_that_all_is_hashed(
    notes: bytes, copied: Path
) -> None:
    (copied / ".checked.json").write_bytes(notes)
    flip_a_byte_and_restore_the_time(copied / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} does not have the SHA-256"):
        Artifact.open(copied)


def test_cut_weights_are_noticed_with_both_sizes(tool: WarmTool, copied: Path) -> None:
    size = (copied / WEIGHTS).stat().st_size
    os.truncate(copied / WEIGHTS, size - 1)
    done = tool("run", copied, "hi")
    assert_named_error(done, f"{WEIGHTS} has {size - 1} bytes, expected {size}")


def test_lost_files_are_all_named_in_one_line(tool: WarmTool, copied: Path) -> None:
    lost = ("graphs/head.onnx", WEIGHTS, "model/tiktoken.model")
    for name in lost:
        (copied / name).unlink()
    for words in (("run", copied, "hi"), ("verify", copied), ("build", copied)):
        assert_named_error(tool(*words), "3 problems", *(f"{name} is missing" for name in lost))


def test_a_folder_in_the_place_of_a_file_is_missing(copied: Path) -> None:
    (copied / "graphs" / "head.onnx").unlink()
    (copied / "graphs" / "head.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"graphs/head\.onnx is missing"):
        Artifact.open(copied)


@pytest.mark.parametrize("make", [os.link, shutil.copy2])
def test_weights_may_be_hard_links_or_copies(make: object, artifact: Path, copied: Path) -> None:
    assert callable(make)
    (copied / WEIGHTS).unlink()
    make(artifact / WEIGHTS, copied / WEIGHTS)
    assert len(Session.open(copied).encode(QUESTION)) > 0


def test_a_link_that_leaves_the_folder_is_refused(
    tool: WarmTool, copied: Path, tmp_path: Path
) -> None:
    outside = shutil.move(copied / WEIGHTS, tmp_path / "outside.bin")
    (copied / WEIGHTS).symlink_to(outside)
    done = tool("run", copied, "hi")
    assert_named_error(done, f"{WEIGHTS}' leaves the folder; refused")


def test_a_linked_folder_that_leaves_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    outside = shutil.move(copied / "graphs", tmp_path / "outside")
    (copied / "graphs").symlink_to(outside)
    with pytest.raises(ArtifactError, match="leaves the folder; refused"):
        Artifact.open(copied)


def test_a_link_to_itself_is_one_line(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    (copied / WEIGHTS).symlink_to(copied / WEIGHTS)
    with pytest.raises(ArtifactError, match=WEIGHTS):
        Artifact.open(copied)


def test_a_linked_artifact_is_as_good_as_itself(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    assert len(Session.open(tmp_path / "link").encode(QUESTION)) > 0


@pytest.mark.parametrize("graph", ["layer_00", "vision"])
def test_verify_refuses_another_graph_that_the_manifest_vouches_for(
    graph: str, tool: WarmTool, copied: Path
) -> None:
    other = {"layer_00": "layer_01", "vision": "projector"}[graph]
    content = (copied / f"graphs/{other}.cpu.onnx").read_bytes()
    put_in_place(copied, f"graphs/{graph}.cpu.onnx", content)
    assert_named_error(tool("verify", copied), f"target cpu: 1 problem: {graph} ")


def test_verify_refuses_another_neutral_graph_that_the_manifest_vouches_for(
    tool: WarmTool, copied: Path
) -> None:
    content = (copied / "graphs/layer_00.onnx").read_bytes()
    put_in_place(copied, "graphs/layer_01.onnx", content)
    assert_named_error(tool("verify", copied), "target cpu: 1 problem: layer_01 ")


def test_verify_refuses_a_graph_with_weights_of_its_own_choice(
    tool: WarmTool, copied: Path
) -> None:
    content = np.fromfile(copied / WEIGHTS, dtype=np.float32)
    put_in_place(copied, WEIGHTS, (content * 1.01).tobytes())
    before = tree(copied)
    assert_named_error(tool("verify", copied), "layer_01 is off by", "allowed")
    assert tree(copied) == before


def test_a_graph_that_is_no_graph_is_one_line_with_its_name(tool: WarmTool, copied: Path) -> None:
    put_in_place(copied, "graphs/head.cpu.onnx", b"no graph")
    assert_named_error(tool("run", copied, "hi"), "graphs/head.cpu.onnx: ONNX Runtime", "load")
    assert_named_error(tool("verify", copied), "head")


def test_a_neutral_graph_that_is_no_graph_is_one_line_with_its_name(
    tool: WarmTool, copied: Path, steps: dict[str, Path], tmp_path: Path
) -> None:
    put_in_place(copied, "graphs/head.onnx", b"no graph")
    assert_named_error(tool("verify", copied), "1 problem: head cannot be measured")
    exported = shutil.copytree(steps["export"], tmp_path / "exported")
    put_in_place(exported, "graphs/head.onnx", b"no graph")
    assert_named_error(tool("build", exported), "graphs/head.onnx: not an ONNX graph")


def test_weights_that_are_not_numbers_end_the_request_with_one_line(
    tool: WarmTool, copied: Path
) -> None:
    content = np.fromfile(copied / WEIGHTS, dtype=np.float32)
    put_in_place(copied, WEIGHTS, np.full_like(content, np.nan).tobytes())
    session = Session.open(copied)
    with pytest.raises(NumericError, match=r"values from the decoder are not finite"):
        list(session.generate(session.encode(QUESTION)))
    assert_named_error(tool("run", copied, "hi"), "from the decoder are not finite", "verify")
    with pytest.raises(ArtifactError, match="layer_01 is off by inf"):
        verify_artifact(copied)


def test_vision_weights_that_are_not_numbers_end_the_request_with_one_line(
    tool: WarmTool, copied: Path
) -> None:
    name = "graphs/weights/projector.bin"
    content = np.fromfile(copied / name, dtype=np.float32)
    put_in_place(copied, name, np.full_like(content, np.nan).tobytes())
    picture = Path(__file__).parents[2] / "examples" / "coffee.jpg"
    done = tool("run", copied, "hi", "--image", picture)
    assert_named_error(done, "from the vision encoder are not finite")
