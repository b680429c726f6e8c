"""Memory of the device: the largest steps come first, and nothing stays behind an engine."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from runtime.artifact.folder import Artifact
from runtime.engine.cuda.decoder import _Sizes
from runtime.engine.cuda.engine import CudaEngine
from runtime.errors import CapacityError
from runtime.prompt.patches import PatchedImage
from tests.executing_trt import HostDevice

from .conftest import HOST
from .test_recordings import Watched

NO_MEMORY = "CUDA failure 2: out of memory ; GPU=0"


def fail(*_: object) -> None:
    raise RuntimeError(NO_MEMORY)


def test_the_largest_steps_are_run_at_opening_and_leave_nothing(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()
    engine = CudaEngine(Artifact.open(built), provider=HOST, device=device)
    seen = []
    run = engine._decoder._run

    def note(sizes: _Sizes) -> None:
        seen.append((sizes.batch, sizes.tokens, sizes.window))
        run(sizes)

    monkeypatch.setattr(engine._decoder, "_run", note)
    watched = Watched(engine)
    with device.active():
        engine._decoder.reserve()
    assert seen == [(1, 16, 1200), (4, 1, 1200)]
    assert watched.ids == ["-1", "-1"]
    assert engine._cache.rows == 256
    width = engine._decoder._session.get_inputs()[2].shape[-1]
    address = engine._cache.addresses("layer_00", 0)["cache"]
    with device.active():
        assert not device.array(address, (4 * 256, width), np.float32).any()


def test_too_little_memory_for_the_largest_step_is_told_at_opening(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(CapacityError, match=r"a step of the decoder: .* --prefill-chunk"):
        CudaEngine(Artifact.open(built), provider=HOST, device=HostDevice())


def test_too_little_memory_for_an_image_is_told(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CudaEngine(Artifact.open(built), provider=HOST, device=HostDevice())
    values = engine._config.vision.patch_values
    image = PatchedImage(patches=np.zeros((4, 6, values), dtype=np.float32))
    assert engine.encode(image).shape[0] == 6
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(CapacityError, match=r"an image in the vision encoder: .*too small"):
        engine.encode(image)
