"""Callbacks: the share of nested phases, and what becomes of exceptions inside TensorRT."""

import hashlib
import io

import pytest

from engines.trt.callbacks import BuildState, PhaseTree, make_writer
from engines.trt.home import Home


def test_a_phase_inside_another_shares_its_present_step() -> None:
    phases = PhaseTree()
    assert phases.share == 0
    phases.start("build", None, 4)
    phases.complete("build", 0)
    assert phases.share == 1 / 4
    phases.start("optimise", "build", 2)
    phases.complete("optimise", 0)
    assert phases.share == 1 / 4 + 1 / 8
    phases.complete("optimise", 1)
    assert phases.share == 2 / 4
    phases.finish("optimise")
    assert phases.share == 1 / 4
    phases.complete("build", 1)
    assert phases.share == 2 / 4


def test_a_phase_without_steps_or_with_too_many_stays_a_share() -> None:
    phases = PhaseTree()
    phases.start("empty", None, 0)
    phases.complete("empty", 5)
    assert phases.share == 1
    phases.complete("never started", 3)
    phases.finish("empty")
    phases.finish("empty")
    assert phases.share == 0


def test_a_writer_counts_and_hashes_what_it_writes(home: Home) -> None:
    file, state = io.BytesIO(), BuildState()
    writer = make_writer(home.trt, file, state)
    assert [writer.write(b"plan"), writer.write(b"ned")] == [4, 3]
    assert file.getvalue() == b"planned"
    assert state.size_bytes == 7
    assert state.digest.hexdigest() == hashlib.sha256(b"planned").hexdigest()
    state.raise_error()  # nothing to raise


def test_a_writer_keeps_the_first_error_and_takes_no_byte(home: Home) -> None:
    file, state = io.BytesIO(), BuildState()
    writer = make_writer(home.trt, file, state)
    file.close()
    assert writer.write(b"plan") == 0
    first = state.error
    assert writer.write(b"plan") == 0
    assert state.error is first
    assert state.size_bytes == 0
    with pytest.raises(ValueError, match="closed file"):
        state.raise_error()
