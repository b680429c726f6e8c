"""What is measured of each side, and how samples become figures.

A side is ours or a peer. Whatever does not fit a card's memory is left out with the reason, and the
rest goes on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

from runtime.errors import CapacityError

DECODED = 32
"""Tokens of each slot that a sample of decoding takes."""
PROMPTS = (512, 4096)
Samples = dict[str, list[Any]]
"""By the name of a row."""


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
    repeats: int = 5

    def decodes(self) -> Iterator[tuple[int, int]]:
        """Yield batch and depth, by rising depth, so that slots are filled once."""
        pairs = [(batch, depth) for batch in self.batches for depth in self.depths]
        pairs += [(1, depth) for depth in self.long_depths]
        yield from sorted(pairs, key=lambda pair: (pair[1], pair[0]))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Samples of one side."""

    samples: Samples
    """Of decoding the seconds of each step, of a prompt its seconds; one entry for each repeat."""
    left_out: dict[str, str]
    """Rows that did not fit, and what was said."""


def decode_name(batch: int, depth: int) -> str:
    """Name a row of decoding."""
    return f"decode_batch_{batch}_depth_{depth}"


def measure(
    side: Side, wanted: Wanted, *, prompts: Sequence[int] = PROMPTS, says: Callable[[str], object]
) -> Measured:
    """Take all samples of a side; each row is run once before it counts.

    Args:
        side: whose slots are overwritten.
        wanted: rows and repeats.
        prompts: lengths.
        says: told of each row.
    """
    works: dict[str, Callable[[], Any]] = {
        decode_name(batch, depth): partial(side.decode, depth, DECODED, batch=batch)
        for batch, depth in wanted.decodes()
    }
    works |= {f"prompt_{tokens}": partial(side.prefill, tokens) for tokens in prompts}
    samples: Samples = {}
    left_out: dict[str, str] = {}
    for name, work in works.items():
        try:
            work()
            samples[name] = [work() for _ in range(wanted.repeats)]
        except (CapacityError, RuntimeError) as error:  # torch says so by a RuntimeError
            left_out[name] = " ".join(str(error).split())[:200]
        says(f"{name}: {left_out.get(name, 'done')}")
    return Measured(samples=samples, left_out=left_out)


def figures(samples: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, float]]:
    """Reduce samples: tokens a second of all slots together, medians over steps and repeats."""
    decode: dict[str, float] = {}
    deep: dict[str, float] = {}
    prompt: dict[str, float] = {}
    for name, repeats in samples.items():
        kind, _, rest = name.partition("_")
        if kind == "prompt":
            prompt[f"tokens_{rest}"] = round(int(rest) / median(repeats), 3)
        elif kind == "decode":
            batch, depth = int(name.split("_")[2]), int(name.split("_")[4])
            speed = batch / median(step for steps in repeats for step in steps)
            (deep if depth else decode)[f"batch_{batch}" + f"_depth_{depth}" * bool(depth)] = round(
                speed, 3
            )
    return {
        "decode_tokens_per_s": decode,
        "decode_behind_tokens_per_s": deep,
        "prompt_tokens_per_s": prompt,
    }


def ratios(
    ours: Mapping[str, Mapping[str, float]], peers: Sequence[Mapping[str, Mapping[str, float]]]
) -> dict[str, float]:
    """Divide our speeds by the best peer's, for every row that a peer has; above 1 is faster."""
    found = {}
    for kind, speeds in ours.items():
        for name, speed in speeds.items():
            theirs = [one[kind][name] for one in peers if name in one.get(kind, {})]
            if theirs:
                row = kind.removesuffix("_tokens_per_s").removesuffix("_behind")
                found[f"{row}_{name}"] = round(speed / max(theirs), 3)
    return found
