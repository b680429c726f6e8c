"""Answers many requests at once on one engine, from one thread of its own.

    submit ─► queue ─► slot: prefilled chunk by chunk ─► decoded with the others ─► end
              FIFO     `batch.py`, turn by turn

Requests join and leave at token borders. What is done in which order, and what is guaranteed, is in
`batch.py`; this file has the queue, the thread and the end of both. Greedy answers are those that
each request gets alone, but for logits that differ by less than rounding does.

Does not know: HTTP, Triton, asyncio, chat templates.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from ..engine.protocol import Engine
from ..errors import KimiVLError
from ..generation.request import Request
from ..generation.steps import check_prompt
from ..prompt.tokenizer import Tokenizer
from .batch import RunningBatch
from .content import Content
from .ending import named
from .errors import ClosedError, DeadlineError, QueueFullError, SchedulerError
from .handle import Handle, Listener
from .job import Job
from .options import Deadlines, SchedulerOptions
from .statistics import Counters, Measure, Observer, Stats

_LEAST_RETRY_S = 1.0


def ignore(measure: Measure, seconds: float) -> None:
    """Observe nothing."""


class Scheduler:
    """Owns an engine from its start to its end. All methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        options: SchedulerOptions | None = None,
        observe: Observer = ignore,
    ) -> None:
        """Start the thread.

        Args:
            engine: nothing else may use it until `close` has returned.
            tokenizer: of the checkpoint.
            options: bounds.
            observe: told every measurement, in the scheduler's thread.
        """
        self._limits = engine.limits
        self._options = options or SchedulerOptions()
        self._counters = Counters()
        self._batch = RunningBatch(engine, tokenizer, self._options, self._counters, observe)
        self._queue: deque[Job] = deque()
        self._submitted = self._refused = 0
        self._is_open, self._is_closing, self._is_idle = True, False, True
        self._changed = threading.Condition()
        """Guards everything above but the batch, which is the thread's."""
        self._stats = self._snapshot()
        self._thread = threading.Thread(target=self._work, name="kimivl-scheduler", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        *,
        deadlines: Deadlines | None = None,
        listener: Listener | None = None,
        arrived: float | None = None,
    ) -> Handle:
        """Queue a request.

        Args:
            request: with a checked constraint, if any; it can be submitted once.
            deadlines: none, if left out.
            listener: told every event; without one the handle keeps them for its reader.
            arrived: when it came, by `time.monotonic`, for who had to prepare it: what is measured
                and limited as a whole begins there. Now, if left out.

        Raises:
            CapacityError: the prompt does not fit, told at once.
            InputError: the prompt is empty, or its images and placeholders do not match.
            QueueFullError: too many are waiting.
            ClosedError: the scheduler is draining or closed.
        """
        if request.result is not None:
            raise ValueError("this request has a result; make a new one")
        check_prompt(request.prompt, self._limits)
        content = Content.of_prompt(request.prompt)
        handle = Handle(request, listener=listener, wake=self._wake)
        job = Job(handle, content, deadlines or Deadlines(), arrived=arrived)
        with self._changed:
            if not self._is_open:
                raise ClosedError("no new requests are taken: the service is shutting down")
            waiting = sum(not one.request.is_cancelled for one in self._queue)
            if waiting >= self._options.max_queued:
                self._refused += 1
                raise self._full(waiting)
            self._submitted += 1
            self._queue.append(job)
            self._is_idle = False
            self._changed.notify_all()
        return handle

    def stats(self) -> Stats:
        """Give the counts as they were after the last turn, with what was submitted since.

        Who was given a slot since counts as queued: everybody is in one of the two counts.
        """
        with self._changed:
            since = self._submitted - self._stats.submitted
            return replace(
                self._stats,
                num_queued=self._stats.num_queued + since,
                submitted=self._submitted,
                refused=self._refused,
                failures_in_a_row=self._counters.failures.in_a_row(),
            )

    @property
    def retry_after_s(self) -> float:
        """How soon a place should be free again: a request gets a slot on average this often."""
        return max(_LEAST_RETRY_S, self._batch.mean_held_s / self._limits.max_slots)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no new requests, and wait until those there are have ended; tell if they have."""
        with self._changed:
            self._is_open = False
            return self._changed.wait_for(lambda: self._is_idle, timeout_s)

    def close(self) -> None:
        """End everything with an error, and the thread; waits for the step that runs now."""
        with self._changed:
            self._is_open, self._is_closing = False, True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _full(self, waiting: int) -> QueueFullError:
        retry_after_s = self.retry_after_s
        return QueueFullError(
            f"{waiting} requests are waiting, which is the most; try again in "
            f"{retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        """Be the thread."""
        try:
            while self._wait_for_work():
                self._run_turn()
        finally:
            with self._changed:
                self._is_open = False
            self._end_everything(lambda: ClosedError("the service was shut down"))

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; tell if there is something."""
        with self._changed:
            while not self._is_closing and not self._queue and not self._batch.jobs:
                self._check_slots()
                self._stats = self._snapshot()
                self._is_idle = True
                self._changed.notify_all()
                self._changed.wait()
            return not self._is_closing

    def _run_turn(self) -> None:
        """Let waiting requests in or out, and the batch work."""
        try:
            self._admit()
            self._batch.turn()
        except Exception as error:  # noqa: BLE001  our mistake must not end the service
            failure = error
            self._end_everything(lambda: named(failure, SchedulerError, "the scheduler failed"))
        with self._changed:
            self._stats = self._snapshot()

    def _admit(self) -> None:
        """End waiting requests that are overdue or cancelled; give free slots to the first."""
        with self._changed:
            waiting, admitted = deque[Job](), list[Job]()
            ended: list[tuple[Job, DeadlineError | None]] = []
            for job in self._queue:
                overdue = job.overdue()
                if overdue is not None or job.request.is_cancelled:
                    ended.append((job, overdue))
                elif len(admitted) < self._batch.slots.num_free:
                    admitted.append(job)
                else:
                    waiting.append(job)
            self._queue = waiting
        for job, overdue in ended:
            self._batch.end_waiting(job, overdue)
        for job in admitted:
            self._batch.admit(job)

    def _end_everything(self, make_error: Callable[[], KimiVLError]) -> None:
        with self._changed:
            waiting, self._queue = self._queue, deque()
        for job in waiting:
            self._batch.end_waiting(job, make_error())
        self._batch.end_all(make_error)
        with self._changed:
            self._stats = self._snapshot()
            self._is_idle = True
            self._changed.notify_all()

    def _check_slots(self) -> None:
        try:
            self._batch.slots.check()
        except SchedulerError:
            self._counters.errors["SlotsLost"] += 1

    def _snapshot(self) -> Stats:
        batch, counters = self._batch, self._counters
        return Stats(
            num_queued=len(self._queue),
            num_running=len(batch.jobs),
            num_slots=batch.slots.num_slots,
            num_free_slots=batch.slots.num_free,
            num_used_slots=batch.slots.num_used,
            num_cached_tokens=batch.num_cached_tokens,
            image_cache_bytes=batch.features.size_bytes,
            submitted=self._submitted,
            refused=self._refused,
            ended=dict(counters.ended),
            errors=dict(counters.errors),
            prompt_tokens=counters.prompt_tokens,
            reused_tokens=counters.reused_tokens,
            reusing_requests=counters.reusing_requests,
            new_tokens=counters.new_tokens,
            images_encoded=counters.images_encoded,
            images_reused=counters.images_reused,
            decode_steps=counters.decode_steps,
            prefill_steps=counters.prefill_steps,
            failures_in_a_row=counters.failures.in_a_row(),
        )
