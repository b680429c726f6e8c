"""What is the CUDA engine's own: slots that move, few bytes read, the scheduler on its slots."""

import functools
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from calibration.data.examples import load_examples
from runtime import GenerationLimits, Sampling, Session
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cuda.engine import CudaEngine
from runtime.errors import NumericError
from runtime.prompt.patches import PatchedImage
from tests.executing_trt import HostDevice
from tests.runtime.fed import CUDA_TOLERANCE, check_close, feed, ids_of

from .conftest import HOST

BYTES_OF_A_CHOICE = 8
NONE = np.zeros(0, dtype=np.int64)

assert_close = functools.partial(check_close, tolerance=CUDA_TOLERANCE)


def test_a_slot_that_grows_moves_the_others_and_changes_none(
    engine: CudaEngine, truth: CpuEngine
) -> None:
    short, long = ids_of(20, seed=60), ids_of(700, seed=61)
    for one in (engine, truth):
        for slot in (0, 1, 3):
            feed(one, [slot], [short], [0])
        feed(one, [2], [long], [0])  # from 256 rows a slot over 512 and 1024 to 700 used
    more = [ids_of(1, seed=62 + slot) for slot in range(4)]
    lengths = [20, 20, 700, 20]
    slots = [0, 1, 2, 3]
    assert_close(feed(engine, slots, more, lengths), feed(truth, slots, more, lengths))
    for one in (engine, truth):
        feed(one, [2], [short], [0])  # and back again
    lengths = [21, 21, 20, 21]
    assert_close(feed(engine, slots, more, lengths), feed(truth, slots, more, lengths))


def test_a_greedy_step_gives_the_ids_of_the_highest_logits(engine: CudaEngine) -> None:
    # Two chunks in slots that are no neighbours; more rows than a run has room for.
    hidden = np.stack([engine.embed(ids_of(21, seed=seed)) for seed in (1, 2)])
    rows = np.random.default_rng(0).permutation(2 * 21)
    given = [3, 1], hidden, np.zeros(2, dtype=np.int64), rows
    logits, ids = engine.step(*given), engine.step_greedy(*given)
    assert ids.dtype == np.int64
    assert ids.tolist() == logits.argmax(axis=1).tolist()
    assert len(set(ids.tolist())) > 3


def test_greedy_decoding_reads_eight_bytes_for_a_token(
    engine: CudaEngine, device: HostDevice
) -> None:
    hidden = np.stack([engine.embed(ids_of(1, seed=seed)) for seed in range(3)])
    before = device.bytes_read
    engine.step_greedy([0, 1, 2], hidden, np.array([0, 0, 0]), np.arange(3))
    assert device.bytes_read - before == 3 * BYTES_OF_A_CHOICE


class Watched:
    """A session that tells whether the device was held when it ran."""

    def __init__(self, session: ort.InferenceSession, device: HostDevice) -> None:
        self._session, self._device = session, device
        self.was_held: list[bool] = []

    def run_with_iobinding(self, binding: ort.IOBinding) -> None:
        self.was_held.append(self._device.is_active)
        self._session.run_with_iobinding(binding)

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


def test_nobody_else_has_the_device_while_an_image_is_encoded(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()
    engine = CudaEngine(Artifact.open(built), provider=HOST, device=device)
    vision, projector = (Watched(one, device) for one in (engine._vision, engine._projector))
    monkeypatch.setattr(engine, "_vision", vision)
    monkeypatch.setattr(engine, "_projector", projector)
    engine.encode(PatchedImage(patches=np.zeros((4, 4, 588), dtype=np.float32)))
    assert (vision.was_held, projector.was_held, device.is_active) == ([True], [True], False)


def test_many_requests_at_once_are_answered_as_on_the_cpu_and_use_prefixes_again(
    built: Path, engine: CudaEngine
) -> None:
    session = Session.open(built, num_threads=1)
    on_cuda = Session(engine, session.encoder, stop_ids=session.stop_ids)
    prompts = [session.encode(example.messages) for example in load_examples("nano")[:7]]
    prompts += prompts[:3]  # the same pictures and questions again
    limits = GenerationLimits(max_new_tokens=32)
    expected = []
    for prompt in prompts:
        request = session.request(prompt, Sampling.greedy(), limits)
        list(session.stream(request))
        assert request.result is not None
        expected.append(request.result.ids)
    with on_cuda.scheduling() as scheduler:
        requests = [on_cuda.request(prompt, Sampling.greedy(), limits) for prompt in prompts]
        handles = [scheduler.submit(request) for request in requests]
        results = [handle.wait(60.0).result for handle in handles]
    assert [one.ids if one else None for one in results] == expected
    reused = [one.cached_tokens for one in results[-3:] if one]
    assert min(reused) > 0


def test_what_a_slot_that_ended_in_nan_has_left_ends_no_other_text(
    built: Path, truth: CpuEngine
) -> None:
    engine = CudaEngine(Artifact.open(built), provider=HOST, device=HostDevice())
    hidden = engine.embed(ids_of(300, seed=70))[None]
    hidden[0, 10] = np.nan
    feed(engine, [2], [ids_of(20, seed=71)], [0])
    with pytest.raises(NumericError):  # its slots have moved apart before its last token is seen
        engine.step([1], hidden, np.zeros(1, np.int64), np.array([299]))
    feed(truth, [2], [ids_of(20, seed=71)], [0])
    for slot, length in ((2, 20), (1, 0), (3, 0), (0, 0)):
        ids = ids_of(2, seed=72 + slot)
        assert_close(feed(engine, [slot], [ids], [length]), feed(truth, [slot], [ids], [length]))


def test_hidden_states_of_another_width_are_a_mistake_of_ours(engine: CudaEngine) -> None:
    with pytest.raises(AssertionError, match="of 64, the graph takes 128"):
        engine.step([0], np.zeros((1, 1, 64), np.float32), np.zeros(1, np.int64), np.array([0]))
