"""Requests sent as many clients would: so many at a time, or as they happen to come."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from time import monotonic, sleep

from runtime.errors import InputError, describe_problems
from runtime.progress import Progress, silent

from .asked import Question
from .endpoint import Endpoint, RequestFailedError, Used

MAX_IN_FLIGHT = 1024
"""Threads of a run at a rate; requests that come later wait for one, and are counted from when
they were due."""


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
        if self.rate is not None and not self.rate > 0:
            problems.append(f"rate: expected a positive number, found {self.rate}")
        if problems:
            raise InputError(describe_problems("load", problems))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request as its client saw it; seconds behind the start of the run."""

    num_images: int
    due_s: float
    """When it was to be sent. Waiting for a thread of ours counts as waiting."""
    end_s: float
    heard_s: tuple[float, ...]
    """When each piece with text came."""
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
        """Between tokens behind the first text: all of them, by the time of the last text."""
        if self.used is None or self.used.new_tokens < 2 or len(self.heard_s) < 2:
            return None
        return (self.heard_s[-1] - self.heard_s[0]) / (self.used.new_tokens - 1)


def run_load(
    endpoint: Endpoint, questions: Sequence[Question], load: Load, progress: Progress = silent
) -> list[Sample]:
    """Ask every question and wait for all answers.

    Args:
        endpoint: who is asked.
        questions: in the order in which they are sent; the warm-ups repeat the first ones.
        load: how they come.
        progress: told in requests.
    """
    for number in range(load.num_warmups):
        _ask(endpoint, questions[number % len(questions)], monotonic(), 0.0)
    start, samples = monotonic(), list[Sample]()
    workers = load.concurrency or min(len(questions), MAX_IN_FLIGHT)
    with ThreadPoolExecutor(workers, thread_name_prefix="load") as pool:
        sent = _send(pool, endpoint, questions, load, start)
        for number, done in enumerate(as_completed(sent), start=1):
            samples.append(done.result())
            progress("ask", number, len(questions))
    return sorted(samples, key=lambda sample: sample.due_s)


def _send(
    pool: ThreadPoolExecutor,
    endpoint: Endpoint,
    questions: Sequence[Question],
    load: Load,
    start: float,
) -> list["Future[Sample]"]:
    if load.rate is None:
        return [pool.submit(_ask, endpoint, question, start, None) for question in questions]
    sent: list[Future[Sample]] = []
    for question, due_s in zip(questions, arrivals(load.rate, load.seed), strict=False):
        sleep(max(0.0, start + due_s - monotonic()))
        sent.append(pool.submit(_ask, endpoint, question, start, due_s))
    return sent


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Give times of a Poisson process, in seconds."""
    generator, at = random.Random(seed), 0.0
    while True:
        yield at
        at += generator.expovariate(rate)


def _ask(endpoint: Endpoint, question: Question, start: float, due_s: float | None) -> Sample:
    """Send one request; without a time it is due now."""
    heard: list[float] = []
    due = monotonic() - start if due_s is None else due_s
    used, failure, message = None, None, ""
    try:
        used = endpoint.ask(question, lambda: heard.append(monotonic() - start))
    except RequestFailedError as error:
        failure, message = error.kind, str(error)
    return Sample(
        num_images=question.num_images,
        due_s=due,
        end_s=monotonic() - start,
        heard_s=tuple(heard),
        used=used,
        failure=failure,
        message=message,
    )
