"""The CUDA engine on the CPU's kernels against target `cpu`: same ids, same images, same logits."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
from examples.nano.score import HERE
from runtime import GenerationLimits, Sampling, Session
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.protocol import FloatArray, NonFiniteRowsError
from runtime.errors import CapacityError, NumericError
from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.patches import PatchedImage
from tests.executing_trt import HostDevice
from tests.runtime.fed import feed, ids_of

from .conftest import HOST

TOLERANCE = 2e-5
"""Of the largest logit: both compute in fp32, over caches of other lengths."""
BYTES_OF_A_CHOICE = 8
NONE = np.zeros(0, dtype=np.int64)


def assert_close(found: FloatArray, expected: FloatArray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_a_prompt_longer_than_a_step_gives_the_logits_of_the_cpu(
    engine: CudaEngine, truth: CpuEngine
) -> None:
    ids = ids_of(39, seed=1)  # two whole chunks of 16 and a rest of 7
    assert_close(feed(engine, [0], [ids], [0]), feed(truth, [0], [ids], [0]))


def test_slots_that_are_no_neighbours_run_with_lengths_of_their_own(
    engine: CudaEngine, truth: CpuEngine
) -> None:
    slots, lengths = [3, 0, 1], [9, 2, 17]
    texts = [ids_of(length, seed=slot) for slot, length in zip(slots, lengths, strict=True)]
    for one in (engine, truth):
        for slot, ids in zip(slots, texts, strict=True):
            feed(one, [slot], [ids], [0])
    for new in (1, 3):
        more = [ids_of(new, seed=10 + slot) for slot in slots]
        assert_close(feed(engine, slots, more, lengths), feed(truth, slots, more, lengths))


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


def test_only_wanted_logits_are_read(engine: CudaEngine, truth: CpuEngine) -> None:
    texts = [ids_of(21, seed=30), ids_of(21, seed=31)]
    rows = np.array([41, 3, 20, 21])  # of both slots and both chunks, in no order
    start = np.zeros(2, dtype=np.int64)
    found, expected = (
        one.step([1, 2], np.stack([one.embed(ids) for ids in texts]), start, rows)
        for one in (engine, truth)
    )
    assert_close(found, expected)
    assert engine.step([1], engine.embed(texts[0])[None], start[:1], NONE).shape == (0, 768)


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


def test_a_prefix_is_copied_between_slots(engine: CudaEngine, truth: CpuEngine) -> None:
    ids, last = ids_of(12, seed=40), ids_of(1, seed=41)
    feed(engine, [2], [ids], [0])
    engine.copy_prefix(2, 0, 12)
    feed(truth, [2], [ids], [0])
    assert_close(feed(engine, [0], [last], [12]), feed(truth, [2], [last], [12]))


def test_images_of_any_grid_give_the_features_of_the_cpu(
    engine: CudaEngine, truth: CpuEngine
) -> None:
    config = KimiVLConfig.load(HERE / "checkpoint" / "config.json")
    encoder = PromptEncoder.load(HERE / "checkpoint", config)
    seen = set()
    for example in load_examples("nano")[:8]:
        for image in encoder.encode(example.messages).images:
            seen.add(image.grid)
            assert_close(engine.encode(image), truth.encode(image))
    assert len(seen) > 1


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


def test_answers_are_those_of_the_cpu(built: Path, engine: CudaEngine) -> None:
    session = Session.open(built, num_threads=1)
    on_cuda = Session(engine, session.encoder, stop_ids=session.stop_ids)
    questions = load_examples("nano")[:16]
    expected = evaluate(session, questions, max_new_tokens=48)
    found = evaluate(on_cuda, questions, max_new_tokens=48)
    assert [one.answer for one in found.outcomes] == [one.answer for one in expected.outcomes]
    assert found.exact_match == expected.exact_match > 0.9


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


def test_a_text_over_the_capacity_is_refused(engine: CudaEngine) -> None:
    with pytest.raises(CapacityError, match="1201 tokens do not fit a cache of 1200"):
        feed(engine, [0], [ids_of(2, seed=1)], [1199])
    with pytest.raises(CapacityError, match="the engine has 4"):
        feed(engine, [4], [ids_of(2, seed=1)], [0])


def test_a_slot_that_ended_in_nan_is_clean_for_the_next_text(
    engine: CudaEngine, truth: CpuEngine
) -> None:
    bad = np.full((1, 5, 128), np.nan, dtype=np.float32)
    for step in (engine.step, engine.step_greedy):
        with pytest.raises(NumericError):
            step([3], bad, np.zeros(1, np.int64), np.array([4]))
        ids = ids_of(2, seed=50)
        assert_close(feed(engine, [3], [ids], [0]), feed(truth, [3], [ids], [0]))


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


def test_a_prompt_that_goes_wrong_in_the_middle_ends_there_and_leaves_nothing(
    engine: CudaEngine, truth: CpuEngine
) -> None:
    hidden = engine.embed(ids_of(40, seed=80))[None]
    hidden[0, 10] = np.nan
    with pytest.raises(NumericError) as caught:
        engine.step([2], hidden, np.zeros(1, np.int64), NONE)
    assert not isinstance(caught.value, NonFiniteRowsError)  # there is no row to end
    ids = ids_of(2, seed=81)
    assert_close(feed(engine, [2], [ids], [0]), feed(truth, [2], [ids], [0]))


def test_hidden_states_of_another_width_are_a_mistake_of_ours(engine: CudaEngine) -> None:
    with pytest.raises(AssertionError, match="of 64, the graph takes 128"):
        engine.step([0], np.zeros((1, 1, 64), np.float32), np.zeros(1, np.int64), np.array([0]))
