"""Requests sent as many clients would: so many at a time, or as they happen to come."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic, sleep

from runtime.errors import InputError, describe_problems
from runtime.progress import Progress, silent

from .asked import Question
from .endpoint import Endpoint, Heard, RequestFailedError, Used

MAX_IN_FLIGHT = 1024
"""Threads of a run at a rate; requests that come later wait for one, and are counted from when
they were due."""
MIN_RATE = 0.001
MAX_RATE = 10_000.0


def _ignore(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests come.

    Raises:
        InputError: a value has no meaning; all of them are named at once.
    """

    concurrency: int | None = 8
    """So many clients, each asking again when it was answered. None: requests come at `rate`."""
    rate: float | None = None
    """Requests a second on average, at random times (a Poisson process), whatever is answered."""
    num_warmups: int = 2
    """Requests before, one after the other, that are not counted."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        problems = []
        if (self.concurrency is None) == (self.rate is None):
            problems.append("expected either a concurrency or a rate")
        if self.concurrency is not None and not 1 <= self.concurrency <= MAX_IN_FLIGHT:
            problems.append(f"concurrency: expected 1 to {MAX_IN_FLIGHT}, found {self.concurrency}")
        if self.rate is not None and not MIN_RATE <= self.rate <= MAX_RATE:
            problems.append(f"rate: expected {MIN_RATE:g} to {MAX_RATE:g}, found {self.rate}")
        if problems:
            raise InputError(describe_problems("load", problems))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request as its client saw it; seconds behind the start of the run."""

    num_images: int
    due_s: float
    """When it was to be sent. Waiting for a thread of ours counts as waiting."""
    sent_s: float
    """When it was sent."""
    end_s: float
    heard_s: tuple[float, ...]
    """When each part with text came."""
    tokens_s: tuple[float, ...]
    """When each token came, those of one part at once; as far as the endpoint tells."""
    used: Used | None
    """None if it failed."""
    failure: str | None
    """In one word."""
    message: str = ""

    @property
    def total_s(self) -> float:
        """From when it was due to its end."""
        return self.end_s - self.due_s

    @property
    def time_to_first_token_s(self) -> float | None:
        """From when it was due to the first text; None without any."""
        return self.heard_s[0] - self.due_s if self.heard_s else None

    @property
    def time_per_token_s(self) -> float | None:
        """From the first part to the last token, by the tokens behind the first part."""
        behind = [one for one in self.tokens_s if one > self.tokens_s[0]]
        return (behind[-1] - self.tokens_s[0]) / len(behind) if behind else None


def run_load(
    endpoint: Endpoint,
    questions: Sequence[Question],
    load: Load,
    progress: Progress = silent,
    warn: Callable[[str], None] = _ignore,
) -> list[Sample]:
    """Ask every question and wait for all answers.

    Interrupted, it returns at once: its threads end with their requests, or with the process.

    Args:
        endpoint: who is asked.
        questions: in the order in which they are sent; the first ones are the warm-ups.
        load: how they come.
        progress: told in requests.
        warn: told of warm-ups that failed.

    Returns:
        One for each question but the warm-ups, in the order in which they were due.
    """
    for question in questions[: load.num_warmups]:
        sample = _ask(endpoint, question, monotonic(), None)
        if sample.failure is not None:
            warn(f"a warm-up failed with {sample.failure}: {sample.message}")
    clients = _Clients(endpoint, questions[load.num_warmups :], load)
    samples = list[Sample]()
    try:
        for sample in clients.samples():
            samples.append(sample)
            progress("ask", len(samples), clients.num_asked)
    finally:
        clients.stop()
    return sorted(samples, key=lambda sample: sample.due_s)


class _Clients:
    """Threads that ask one question after the other, each when it is due."""

    def __init__(self, endpoint: Endpoint, questions: Sequence[Question], load: Load) -> None:
        """Start the threads and with them the run."""
        self.num_asked = len(questions)
        self._endpoint, self._start = endpoint, monotonic()
        self._is_stopped = False
        self._waiting: SimpleQueue[tuple[Question, float | None] | None] = SimpleQueue()
        self._answered: SimpleQueue[Sample] = SimpleQueue()
        due = itertools.repeat(None) if load.rate is None else arrivals(load.rate, load.seed)
        for question, due_s in zip(questions, due, strict=False):
            self._waiting.put((question, due_s))
        for _ in range(min(load.concurrency or MAX_IN_FLIGHT, len(questions))):
            self._waiting.put(None)
            # A daemon: a process that was interrupted does not wait for answers.
            threading.Thread(target=self._work, name="load", daemon=True).start()

    def samples(self) -> Iterator[Sample]:
        """Give what came of each question as it ends."""
        for _ in range(self.num_asked):
            yield self._answered.get()

    def stop(self) -> None:
        """Ask nothing more."""
        self._is_stopped = True

    def _work(self) -> None:
        while (told := self._waiting.get()) is not None:
            question, due_s = told
            if due_s is not None:
                sleep(max(0.0, self._start + due_s - monotonic()))
            if self._is_stopped:
                return
            self._answered.put(_ask(self._endpoint, question, self._start, due_s))


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Give times of a Poisson process, in seconds."""
    generator, at = random.Random(seed), 0.0
    while True:
        yield at
        at += generator.expovariate(rate)


def _ask(endpoint: Endpoint, question: Question, start: float, due_s: float | None) -> Sample:
    """Send one request; without a time it is due now."""
    heard: list[float] = []
    tokens: list[float] = []

    def hear(part: Heard) -> None:
        now_s = monotonic() - start
        if part.has_text:
            heard.append(now_s)
        tokens.extend([now_s] * part.num_tokens)

    sent_s = monotonic() - start
    used, failure, message = None, None, ""
    try:
        used = endpoint.ask(question, hear)
    except RequestFailedError as error:
        failure, message = error.kind, str(error)
    except Exception as error:  # noqa: BLE001  one request must not end the run
        failure, message = type(error).__name__, str(error)
    return Sample(
        num_images=question.num_images,
        due_s=sent_s if due_s is None else due_s,
        sent_s=sent_s,
        end_s=monotonic() - start,
        heard_s=tuple(heard),
        tokens_s=tuple(tokens),
        used=used,
        failure=failure,
        message=message,
    )
