"""An engine whose answers depend on all that is in a slot, and short ways to drive requests on it.

A token that comes from another request, a wrong image or a stale cache changes every token behind
it. The engine can be told to fail, to give NaN, and to stop between steps.
"""

import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from runtime.engine.protocol import FloatArray, IntArray
from runtime.generation.channels import Piece
from runtime.generation.generate import generate
from runtime.generation.request import Request
from runtime.generation.sampling import Sampling
from runtime.generation.stopping import GenerationLimits
from runtime.limits import Limits
from runtime.prompt.encoder import Prompt
from runtime.prompt.patches import PatchedImage
from runtime.scheduling.batch import RunningBatch
from runtime.scheduling.content import Content
from runtime.scheduling.handle import End, Handle, Listener
from runtime.scheduling.job import Job
from runtime.scheduling.options import Deadlines, SchedulerOptions
from runtime.scheduling.statistics import Counters
from tests.runtime.byte_model import END, MEDIA, TOKENIZER, VOCAB, make_prompt, result_of
from tests.runtime.fake_engine import FakeEngine, StepCall, make_limits

MAX_TOKENS = 96
CHUNK = 4


class MemoryEngine(FakeEngine):
    """Chooses by a hash of the slot; what ends an answer is as likely as any other id."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(np.zeros((limits.max_tokens, VOCAB), dtype=np.float32), limits)
        self.before_step: Callable[[StepCall], None] = lambda call: None
        """Called with every step that is about to run; may raise or wait."""
        self.before_encode: Callable[[PatchedImage], None] = lambda image: None
        self.poisoned: set[int] = set()
        """Slots whose next row is NaN."""

    def encode(self, image: PatchedImage) -> FloatArray:
        self.before_encode(image)
        return super().encode(image)

    def _step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        call = StepCall(
            tuple(slots), hidden.shape[1], tuple(lengths.tolist()), tuple(rows.tolist())
        )
        self.before_step(call)
        return super()._step(slots, hidden, lengths, rows)

    def _row(self, slot: int, position: int) -> FloatArray:
        if slot in self.poisoned:
            self.poisoned.remove(slot)
            return np.full(VOCAB, np.nan, dtype=np.float32)
        seed = zlib.crc32(self.slots[slot][: position + 1].tobytes())
        row = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
        row[MEDIA] = -10  # a model does not say placeholders
        return row


def make_memory_engine(*, max_slots: int = 3, max_tokens: int = MAX_TOKENS) -> MemoryEngine:
    limits = make_limits(max_slots=max_slots, max_tokens=max_tokens, prefill_chunk=CHUNK)
    return MemoryEngine(limits)


def ask(
    *ids: int,
    images: Sequence[PatchedImage] = (),
    max_new_tokens: int = 8,
    sampling: Sampling | None = None,
) -> Request:
    """A request whose prompt is these ids."""
    return Request(
        make_prompt(*ids, images=images),
        stop_ids=frozenset({END}),
        sampling=sampling,
        limits=GenerationLimits(max_new_tokens=max_new_tokens),
    )


def say_alone(request: Request) -> tuple[int, ...]:
    """What an equal request says in an engine of its own."""
    again = Request(
        request.prompt, stop_ids=request.stop_ids, sampling=request.sampling, limits=request.limits
    )
    list(generate(make_memory_engine(), TOKENIZER, again))
    return result_of(again).ids


def ids_said(request: Request) -> tuple[int, ...]:
    return result_of(request).ids


class Drive:
    """A batch without a thread: every turn is the test's."""

    def __init__(self, engine: MemoryEngine, options: SchedulerOptions | None = None) -> None:
        self.engine = engine
        self.counters = Counters()
        self.measured: list[tuple[str, float]] = []
        self.batch = RunningBatch(
            engine,
            TOKENIZER,
            options or SchedulerOptions(),
            self.counters,
            lambda measure, seconds: self.measured.append((measure, seconds)),
        )

    def admit(
        self,
        request: Request,
        *,
        listener: Listener | None = None,
        deadlines: Deadlines | None = None,
    ) -> Job:
        handle = Handle(request, listener=listener, wake=lambda: None)
        job = Job(handle, Content.of_prompt(request.prompt), deadlines or Deadlines())
        self.batch.admit(job)
        return job

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.batch.turn()

    def finish(self) -> None:
        """Go on until nothing runs."""
        for _ in range(10_000):
            if not self.batch.jobs:
                self.batch.slots.check()
                return
            self.batch.turn()
        raise AssertionError("some request never ends")

    def answer(self, request: Request) -> Job:
        job = self.admit(request)
        self.finish()
        return job


def end_of(job: Job) -> End:
    assert job.handle.end is not None
    return job.handle.end


def pieces_of(handle: Handle) -> list[Piece]:
    return [event for event in handle.events() if isinstance(event, Piece)]


class Gate:
    """Holds a scheduler's thread in front of its steps; opened step by step or for good."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._passes = threading.Semaphore(0)
        self._is_open = False
        self._arrived = threading.Semaphore(0)
        engine.before_step = self._wait

    def _wait(self, call: StepCall) -> None:
        self._arrived.release()
        if not self._is_open:
            assert self._passes.acquire(timeout=10)

    def wait_for_step(self) -> None:
        """Return when the thread stands in front of a step."""
        assert self._arrived.acquire(timeout=10)

    def pass_one(self) -> None:
        self._passes.release()

    def open(self) -> None:
        self._is_open = True
        self._passes.release()


def make_text_prompt(size: int, *, seed: int) -> Prompt:
    return make_prompt(*np.random.default_rng(seed).integers(0, 256, size).tolist())
