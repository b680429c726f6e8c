"""The running requests of one engine, one turn after the other; used by one thread.

A turn:

1. end      what was cancelled or is overdue; its slot is free at once
2. prepare  one unit of one prompt: an image through the encoder, or a chunk into its slot
3. decode   one token for every request whose prompt is in its slot, in one step

So between two tokens of a running answer there is at most one chunk or one image of somebody else.

Failures end what they belong to and nothing else. An image that cannot be encoded, logits that are
not finite, a sampler or a listener that raises end their own request; a step that raises ends
those that were part of it. What such a step has written is never used again.
"""

from collections.abc import Callable, Sequence

from ..engine.protocol import Engine
from ..errors import KimiVLError, NumericError
from ..generation.slot_run import Row, SlotRun, decode
from ..prompt.tokenizer import Tokenizer
from .content import EMPTY
from .ending import finish, named
from .errors import EngineFailedError, HandlingError
from .fairness import PrefillTurns
from .features import FeatureCache
from .job import Job
from .options import SchedulerOptions
from .slots import Match, SlotTable, reusable_length
from .statistics import Counters, Measure, Observer, Step

_SHARE_OF_LATEST = 0.2


class RunningBatch:
    """Admitted requests, their slots, and the work on them."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        options: SchedulerOptions,
        counters: Counters,
        observe: Observer,
    ) -> None:
        """Start with all slots free; nothing else may use the engine from now on."""
        self._engine, self._tokenizer = engine, tokenizer
        self._counters, self._observe = counters, observe
        self._chunk = engine.limits.prefill_chunk
        self._chunk_beside_decoding = min(self._chunk, options.chunk_beside_decoding or self._chunk)
        self.slots = SlotTable(engine.limits.max_slots)
        self.features = FeatureCache(options.image_cache_bytes)
        self._turns = PrefillTurns()
        self._jobs: list[Job] = []
        """In the order of their admission."""
        self.mean_held_s = 0.0
        """How long a request had its slot lately; 0 before the first has ended."""

    @property
    def jobs(self) -> Sequence[Job]:
        """The running requests, the oldest first."""
        return self._jobs

    @property
    def num_cached_tokens(self) -> int:
        """Tokens in used slots, and in free ones that may be used again."""
        return self.slots.num_kept_tokens + sum(job.run.num_cached for job in self._jobs)

    def admit(self, job: Job) -> None:
        """Give a request one of the free slots, of which there must be one."""
        lease = self.slots.take(job.content)
        try:
            run = SlotRun(self._engine, self._tokenizer, job.request, lease.slot)
            run.reuse(lease.num_reused)
        except Exception as error:  # noqa: BLE001  it is told to the request that it belongs to
            self.slots.give_back(lease.slot, EMPTY)
            self.end_waiting(job, named(error, HandlingError, "the request could not begin"))
            return
        job.admit(run)
        self._jobs.append(job)
        self._tell("queue_s", job.queued_s)

    def turn(self) -> None:
        """End what is to end, prepare one unit, decode one token each."""
        for job in list(self._jobs):
            overdue = job.overdue()
            if overdue is not None or job.request.is_cancelled:
                self._end(job, overdue)
        preparing = [job for job in self._jobs if not job.is_decoding]
        if preparing:
            self._prepare(self._turns.choose(preparing))
        decoding = [job for job in self._jobs if job.is_decoding]
        if decoding:
            self._decode(sorted(decoding, key=lambda job: job.run.slot))

    def end_waiting(self, job: Job, error: KimiVLError | None) -> None:
        """End a request that has no slot: it was cancelled, or there is an error."""
        finish(job, error, self._counters)
        self._tell("total_s", job.age_s)

    def end_all(self, make_error: Callable[[], KimiVLError]) -> None:
        """End everything that runs, and forget what all slots hold."""
        for job in list(self._jobs):
            self._end(job, make_error(), is_lost=True)
        self.slots.forget()

    def _prepare(self, job: Job) -> None:
        """Do one unit for one prompt."""
        if not job.has_begun:
            self._attempt("prefill", [job], lambda: self._begin(job))
        if job.is_ended or self._encode(job):
            return
        for row in self._attempt("prefill", [job], lambda: self._prefill(job)):
            self._take(job, row)

    def _begin(self, job: Job) -> list[Row]:
        """Copy the longest beginning that another slot holds, if it is longer than the own one.

        Only now, not with the admission: a request that was sent along with its like finds that
        one's prompt computed.
        """
        job.has_begun = True
        run, counters = job.run, self._counters
        match = self._find_beginning(job)
        if match.length > run.num_cached:
            self._engine.copy_prefix(match.slot, run.slot, match.length)
            run.reuse(match.length)
        counters.prompt_tokens += len(job.content)
        counters.reused_tokens += run.num_reused
        counters.reusing_requests += run.num_reused > 0
        return []

    def _find_beginning(self, job: Job) -> Match:
        """Find the other slot, used or free, that begins most like a prompt."""
        best = Match(job.run.slot, 0)
        for other in self._jobs:
            if other is not job:
                length = reusable_length(other.held, job.content)
                best = max(best, Match(other.run.slot, length), key=lambda one: one.length)
        if self.slots.num_free:
            kept = self.slots.find(job.content)
            if kept.length > max(best.length, job.run.num_cached):
                self.slots.touch(kept.slot)
                return kept
        return best

    def _encode(self, job: Job) -> bool:
        """Give the run all images whose rows are kept, then encode one; tell if one was."""
        run, counters = job.run, self._counters
        while (index := run.next_image) is not None:
            key = job.content.images[index].key
            known = self.features.find(key)
            if known is None:
                try:
                    self.features.keep(key, run.encode_next(self._engine))
                    counters.images_encoded += 1
                    counters.failures.end("encode")
                except Exception as error:  # noqa: BLE001  it is told to the request
                    if not isinstance(error, KimiVLError):  # then it is this image's own
                        counters.failures.add("encode")
                    self._end(job, named(error, EngineFailedError, "an image was not encoded"))
                return True
            run.give(known)
            counters.images_reused += 1
        return False

    def _prefill(self, job: Job) -> list[Row]:
        is_alone = not any(other.is_decoding for other in self._jobs)
        chunk = self._chunk if is_alone else self._chunk_beside_decoding
        row = job.run.prefill_next(self._engine, chunk)
        self._counters.prefill_steps += 1
        self._counters.failures.end("prefill")
        return [] if row is None else [row]

    def _decode(self, jobs: Sequence[Job]) -> None:
        runs = [job.run for job in jobs]
        rows = self._attempt("decode", jobs, lambda: decode(self._engine, runs))
        if rows:
            self._counters.decode_steps += 1
            self._counters.failures.end("decode")
        for job, row in zip(jobs, rows, strict=False):  # no rows if the step has failed
            self._take(job, row)

    def _attempt(self, kind: Step, jobs: Sequence[Job], step: Callable[[], list[Row]]) -> list[Row]:
        """Let the engine work for some requests; end them all if it raises."""
        try:
            rows = step()
        except Exception as error:  # noqa: BLE001  it is told to those requests
            if not isinstance(error, NumericError):  # the text's own fault, as in a token's logits
                self._counters.failures.add(kind)
            for job in jobs:
                failure = named(error, EngineFailedError, "a step of the engine failed")
                self._end(job, failure, is_lost=True)
            return []
        return rows

    def _take(self, job: Job, row: Row) -> None:
        """Choose a token and hand on what it makes certain; end the request if that was all."""
        is_first = not job.is_decoding
        try:
            pieces = job.run.take(row)
            for piece in pieces:
                job.handle.deliver(piece)
        except NumericError as error:
            self._end(job, error, is_lost=True)
            return
        except Exception as error:  # noqa: BLE001  it is told to the request
            self._end(job, named(error, HandlingError, "a token was not taken"))
            return
        self._counters.new_tokens += 1
        self._tell("time_to_first_token_s" if is_first else "time_per_token_s", job.lap_s())
        if job.run.decoding.finish_reason is not None:
            self._end(job, None)

    def _end(self, job: Job, error: KimiVLError | None, *, is_lost: bool = False) -> None:
        """Free the slot, then tell the end; a lost slot's content is not used again."""
        self._jobs.remove(job)
        self.slots.give_back(job.run.slot, EMPTY if is_lost else job.held)
        latest, share = job.held_s, _SHARE_OF_LATEST if self.mean_held_s else 1.0
        self.mean_held_s += share * (latest - self.mean_held_s)
        finish(job, error, self._counters)
        self._tell("total_s", job.age_s)

    def _tell(self, measure: Measure, seconds: float) -> None:
        try:
            self._observe(measure, seconds)
        except Exception:  # noqa: BLE001  who measures must not end what is measured
            self._counters.errors["ObserverRaised"] += 1
