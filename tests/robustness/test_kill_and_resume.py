"""A run may be killed at any moment: the next one goes on, and nobody can tell afterwards."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import engines.cpu.build
from engines.build import build_target
from engines.cpu import passes as cpu_passes
from engines.lowering import Pass
from engines.options import BuildOptions
from runtime import files
from runtime.artifact.folder import Artifact

from .conftest import WarmTool, leftovers, tree
from .warm_tool import FLAGS

KILLED = -9
SAME_AS_THE_ONE_BEFORE = ("before note of", "before removal of")
"""Events that follow another one while nothing is written in between."""


STAGES = {"export": "nothing", "build": "export", "verify": "build"}
"""Each stage and the one before it."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_any_event_ends_the_same_when_it_is_run_again(
    stage: str, tool: WarmTool, checkpoint: Path, steps: dict[str, Path], tmp_path: Path
) -> None:
    before, after = steps[STAGES[stage]], tree(steps[stage])
    flags = FLAGS if stage == "build" else ()

    def begin(name: str) -> tuple[str | Path, ...]:
        folder = tmp_path / name
        if before.exists():
            shutil.copytree(before, folder)
        return (stage, checkpoint, folder) if stage == "export" else (stage, folder, *flags)

    events = tool(*begin("whole")).events
    assert (events[0], events[-1]) == (f"before {stage}", f"after {stage}")
    assert tree(tmp_path / "whole") == after
    for index, event in enumerate(events):
        if event.startswith(SAME_AS_THE_ONE_BEFORE):
            continue
        words = begin(str(index))
        killed = tool(*words, dies_at=index)
        assert (killed.status, killed.events) == (KILLED, events[: index + 1])
        again = tool(*words)
        assert again.status == 0, f"killed {event}: {again.stderr}"
        folder = tmp_path / str(index)
        assert tree(folder) == after, f"killed {event}"
        assert leftovers(folder) == [], f"killed {event}"
        shutil.rmtree(folder)


def test_a_compile_that_never_gets_far_ends_the_same(
    tool: WarmTool, checkpoint: Path, artifact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    ends = [KILLED]
    while ends[-1] == KILLED:
        assert len(ends) < 60, "the run makes no progress"
        ends.append(tool("compile", checkpoint, folder, *FLAGS, dies_at=6).status)
    assert (ends[-1], len(ends) > 20) == (0, True)
    assert tree(folder) == tree(artifact)
    assert leftovers(folder) == []


def test_the_same_command_twice_touches_nothing(
    tool: WarmTool, checkpoint: Path, artifact: Path, copied: Path
) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in copied.rglob("*")}

    before = times()
    words = ("compile", checkpoint, copied, *FLAGS)
    assert tool(*words).status == 0
    assert times() == before
    assert tree(copied) == tree(artifact)


class KilledError(Exception):
    """Stands for a kill within a build."""


def kill_in_the_middle(event: str) -> None:
    if event == "after layer_01.cpu.onnx":
        raise KilledError


def fewer_passes(*, may_round_activations: bool = False) -> list[Pass]:
    """Of another version, which builds a target anew."""
    return cpu_passes.passes(may_round_activations=may_round_activations)[:-1]


def test_a_build_killed_while_it_replaces_another_leaves_an_artifact_that_opens(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.cpu.build, "passes", fewer_passes)
    monkeypatch.setattr(files, "on_event", kill_in_the_middle)
    options = BuildOptions(max_tokens=512, max_slots=2, prefill_chunk=64)
    with pytest.raises(KilledError):
        build_target(copied, "cpu", options)
    assert "cpu" not in Artifact.open(copied).manifest.targets
    monkeypatch.undo()
    monkeypatch.setattr(engines.cpu.build, "passes", fewer_passes)
    build_target(copied, "cpu", options)
    assert Artifact.open(copied).target("cpu").passes == tuple(p.name for p in fewer_passes())
    assert leftovers(copied) == []


def test_limits_that_are_left_out_outlive_a_build_killed_while_it_replaces_another(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Artifact.open(copied).target("cpu").limits
    wanted = replace(before, max_slots=before.max_slots + 1)
    options = BuildOptions(max_slots=wanted.max_slots)
    monkeypatch.setattr(engines.cpu.build, "passes", fewer_passes)
    with monkeypatch.context() as patched:
        patched.setattr(files, "on_event", kill_in_the_middle)
        with pytest.raises(KilledError):
            build_target(copied, "cpu", options)
    assert "cpu" not in Artifact.open(copied).manifest.targets
    assert build_target(copied, "cpu", options).targets["cpu"].limits == wanted
    assert not list(copied.glob(".*.limits"))


def test_a_build_with_other_limits_gives_what_a_first_build_gives(
    tool: WarmTool, steps: dict[str, Path], tmp_path: Path
) -> None:
    limits = ("--max-kv-cache-capacity", "128", *FLAGS[2:])
    first = shutil.copytree(steps["export"], tmp_path / "first")
    assert tool("build", first, *limits).status == 0
    assert tool("verify", first).status == 0
    events = tool("build", shutil.copytree(steps["verify"], tmp_path / "whole"), *limits).events
    for index, event in enumerate(events):
        folder = shutil.copytree(steps["verify"], tmp_path / str(index))
        assert tool("build", folder, *limits, dies_at=index).status == KILLED
        assert tool("build", folder, *limits).status == 0
        assert tree(folder) == tree(first), event


def test_a_build_with_other_limits_ends_a_build_that_was_killed_at_its_end(
    tool: WarmTool, steps: dict[str, Path], tmp_path: Path
) -> None:
    whole = shutil.copytree(steps["export"], tmp_path / "whole")
    at_end = tool("build", whole, *FLAGS).events.index("after manifest.json")
    folder = shutil.copytree(steps["export"], tmp_path / "folder")
    assert tool("build", folder, *FLAGS, dies_at=at_end).status == KILLED
    assert leftovers(folder) == [".build-cpu.journal"]
    assert tool("build", folder, "--max-kv-cache-capacity", "128").status == 0
    assert leftovers(folder) == []
