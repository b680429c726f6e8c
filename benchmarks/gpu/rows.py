"""What is measured of each side.

A side is ours or a peer. Whatever does not fit a card's memory is left out with the reason, and the
rest goes on.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from runtime.errors import KimiVLError

DECODED = 32
"""Tokens of each slot that a sample of decoding takes."""
PROMPTS = (512, 4096)
Found = dict[str, Any]
"""What a part adds to the results, by section."""
SAMPLES = "samples"
LEFT_OUT = "left_out"
Works = Mapping[str, Callable[[], Any]]
"""What takes a sample, by the name of a row."""


class Side(Protocol):
    """Ours or theirs."""

    def decode(self, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        """Decode behind `depth` others in some slots: seconds for each step."""

    def prefill(self, tokens: int) -> float:
        """Run a prompt: seconds."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for."""

    batches: tuple[int, ...] = (1, 8, 32)
    depths: tuple[int, ...] = (0, 8192)
    """Of every batch."""
    long_depths: tuple[int, ...] = (65_536, 131_072 - DECODED)
    """Of batch 1 alone."""
    prompts: tuple[int, ...] = PROMPTS
    """Their tokens."""
    repeats: int = 5

    def decodes(self) -> Iterator[tuple[int, int]]:
        """Yield batch and depth, each once, by rising depth, so that slots are filled once."""
        pairs = {(batch, depth) for batch in self.batches for depth in self.depths}
        pairs |= {(1, depth) for depth in self.long_depths}
        yield from sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def decode_name(batch: int, depth: int) -> str:
    """Name a row of decoding."""
    return f"decode_batch_{batch}_depth_{depth}"


def works_of(side: Side, wanted: Wanted) -> dict[str, Callable[[], Any]]:
    """Tell what takes a sample of each row that is asked for."""
    works: dict[str, Callable[[], Any]] = {
        decode_name(batch, depth): partial(side.decode, depth, DECODED, batch=batch)
        for batch, depth in wanted.decodes()
    }
    return works | {f"prompt_{tokens}": partial(side.prefill, tokens) for tokens in wanted.prompts}


def measure(
    works: Works, repeats: int, *, warm_up: Callable[[Callable[[], Any]], object]
) -> Iterator[Found]:
    """Take all samples of each row, and give a row as soon as it is done.

    Args:
        works: take a sample of decoding, the seconds of each step, or of a prompt, its seconds.
        repeats: samples of each.
        warm_up: does before a row's first sample what does not count, given its work.

    Yields:
        `samples` of a row, or in `left_out` what was said.
    """
    for name, work in works.items():
        try:
            warm_up(work)
            yield {SAMPLES: {name: [work() for _ in range(repeats)]}}
        except (KimiVLError, RuntimeError) as error:  # torch says so by a RuntimeError
            yield {LEFT_OUT: {name: reason_of(error)}}


def reason_of(error: Exception) -> str:
    """Tell in a line of at most 200 letters what went wrong."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
