"""`verify --on-device` on a double of a card that executes, and on one that is wrong."""

from pathlib import Path

import numpy as np
import pytest

from calibration.on_device import TRUTH, measure_on_device
from calibration.verify import verify_artifact
from runtime.artifact.folder import Artifact
from runtime.engine.opening import open_engine
from runtime.engine.protocol import Engine, FloatArray, IntArray
from runtime.errors import InputError, UnsupportedError
from tests.executing_trt import HostDevice
from tests.runtime.conftest import PLANS_TARGET
from tests.runtime.conftest import plans_artifact as built
from tests.runtime.trt.conftest import make_engine

__all__ = ["built"]


def open_double(artifact: Artifact, target: str) -> Engine:
    if target == TRUTH:
        return open_engine(artifact, target, num_threads=1)
    return make_engine(artifact.folder, HostDevice())


def test_a_card_that_computes_what_the_graphs_say_matches(built: Path) -> None:
    level, figures = measure_on_device(Artifact.open(built), PLANS_TARGET, open_target=open_double)
    assert level == "matches"
    assert 0 < figures["logits_error"] < 5e-3
    assert 0 < figures["vision_error"] < 5e-3
    assert figures["top1"] > 0.95
    assert figures["greedy"] > 0.9
    assert min(figures[name] for name in ("image_ms", "prompt_tokens_per_s", "token_ms")) > 0


def test_a_card_that_computes_something_else_only_runs(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_wrong(artifact: Artifact, target: str) -> Engine:
        engine = open_double(artifact, target)
        if target != TRUTH:
            step = engine.step

            def wrong(
                slots: list[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
            ) -> FloatArray:
                return np.roll(step(slots, hidden, lengths, rows), 1, axis=1)

            monkeypatch.setattr(engine, "step", wrong)
        return engine

    level, figures = measure_on_device(Artifact.open(built), PLANS_TARGET, open_target=open_wrong)
    assert level == "runs"
    assert figures["logits_error"] > 0.05
    assert figures["top1"] < 0.5


def test_without_a_card_nothing_is_claimed(built: Path) -> None:
    before = (built / "manifest.json").read_bytes()
    with pytest.raises(UnsupportedError, match="no CUDA driver"):
        verify_artifact(built, PLANS_TARGET, on_device=True)
    assert (built / "manifest.json").read_bytes() == before


def test_a_target_without_plans_gets_no_receipt_of_a_card(built: Path) -> None:
    before = (built / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="target cpu has no plans: --on-device is about"):
        verify_artifact(built, TRUTH, on_device=True)
    assert (built / "manifest.json").read_bytes() == before
