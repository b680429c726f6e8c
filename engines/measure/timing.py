"""All rows and images on one open engine: samples, and who disturbed them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from runtime.engine.protocol import Engine
from runtime.progress import Progress, silent
from runtime.prompt.patches import ImageRule

from .disturbance import Disturbance, DisturbanceWatch
from .filled import FilledSlots
from .images import ImageSize, TimedImage, time_image
from .rows import Row
from .samples import Spread

WARM_UP_TOKENS = 16
"""Decoded before a row's first sample; of a prompt it is a whole one."""
STAGE = "bench"


@dataclass(frozen=True, kw_only=True)
class TimedRow:
    """One row: for each repeat the seconds of its steps; a prompt is one step."""

    row: Row
    samples_s: tuple[tuple[float, ...], ...]
    disturbance: Disturbance

    @property
    def tokens_per_s(self) -> Spread:
        """Of all slots together, over the repeats."""
        tokens = self.row.tokens * self.row.batch
        return Spread.of([tokens / sum(one) for one in self.samples_s])

    @property
    def ms_per_token(self) -> Spread:
        """Of one sequence, over all steps; of a prompt its time by its tokens."""
        of_step = self.row.tokens if self.row.kind == "prompt" else 1
        return Spread.of([1000 * step / of_step for one in self.samples_s for step in one])


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Everything that was timed on one engine."""

    rows: tuple[TimedRow, ...]
    images: tuple[TimedImage, ...]
    disturbance: Disturbance
    """Of rows and images together."""


def time_all(
    engine: Engine,
    rows: Sequence[Row],
    sizes: Sequence[ImageSize],
    *,
    vocab_size: int,
    rule: ImageRule,
    repeats: int,
    progress: Progress = silent,
    clock: Callable[[], float] = perf_counter,
) -> Timed:
    """Time images, then rows in their order, each behind an unmeasured warm-up.

    Args:
        engine: whose slots are overwritten.
        rows: by rising depth, so that each slot is filled once.
        sizes: of images.
        vocab_size: rows of the embedding table.
        rule: of the checkpoint.
        repeats: of each row and image.
        progress: told after each.
        clock: tells seconds.
    """
    slots = FilledSlots(engine, vocab_size=vocab_size, clock=clock)
    total = len(sizes) + len(rows)
    pictures = DisturbanceWatch()
    images, timed = [], []
    for size in sizes:
        with pictures.timed():
            images.append(time_image(engine, rule, size, repeats, clock=clock))
        progress(STAGE, len(images), total)
    for row in rows:
        timed.append(_time_row(slots, row, repeats))
        progress(STAGE, len(images) + len(timed), total)
    taken = pictures.total
    for one in timed:
        taken = taken.plus(one.disturbance)
    return Timed(rows=tuple(timed), images=tuple(images), disturbance=taken)


def _time_row(slots: FilledSlots, row: Row, repeats: int) -> TimedRow:
    _run(slots, row, min(row.tokens, WARM_UP_TOKENS) if row.kind == "decode" else row.tokens)
    watch = DisturbanceWatch()
    samples = []
    for _ in range(repeats):
        with watch.timed():
            samples.append(tuple(_run(slots, row, row.tokens)))
    return TimedRow(row=row, samples_s=tuple(samples), disturbance=watch.total)


def _run(slots: FilledSlots, row: Row, tokens: int) -> list[float]:
    if row.kind == "prompt":
        return [slots.prefill(tokens, row.depth)]
    return slots.decode(row.depth, tokens, batch=row.batch)
