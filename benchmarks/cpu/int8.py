r"""The released sizes in int8 beside llama.cpp's Q8_0, which do not fit into 24 GiB together.

    python -m benchmarks.cpu.llama_cpp build
    python -m benchmarks.cpu.int8 [--turns 3]

A turn opens ours in a process of its own, times it, ends it, and then theirs, in changing order:
two minutes a turn, 18 GiB of memory. Both copy their weights into large pages when they are opened
and run a few tokens before any that counts, so that it does not matter what the page cache still
holds. The first time writes what is missing: 3 GB (`repeated_layers.py`) and 17 GB, three minutes.

Adds `ratios.int8_decode_0`, `samples.int8_decode_0` and the like for depth 1024, and what was
measured beside them as `int8` to `benchmarks/cpu/results.json`, after every turn.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import NamedTuple

from engines.cpu.traffic import Traffic
from engines.measure.bandwidth import measure_bandwidth
from runtime.engine.cpu.weights_place import available_bytes
from runtime.errors import CapacityError

from ..record import conditions
from .gguf_model import default_path, write_released_sizes
from .llama_cpp import LlamaCpp
from .ours import Ours
from .repeated_layers import write_repeated
from .results import merge_results, ratio

FOLDER = Path("out/bench/int8")
RECIPE = Path(__file__).with_name("int8-head8-kv8.toml")
DEPTHS = (0, 1024)
DECODED = 24
WARMING = 4
"""Tokens that are decoded before any that counts."""
NEEDED_BYTES = 17_500_000_000
"""Available before a side is opened, for the larger of the two."""
PATIENCE_S = 120
"""Of waiting for it: what an ended process had comes back bit by bit."""

Seconds = dict[str, float]
"""By row, `int8_decode_DEPTH`: the median token's."""
Samples = dict[str, list[dict[str, float]]]


class Ourside(NamedTuple):
    """What our process tells."""

    seconds: Seconds
    traffic: Traffic


def main() -> int:
    """Measure and add the results."""
    parser = argparse.ArgumentParser(description="int8 beside Q8_0, one process after the other")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    gguf = write_released_sizes("q8_0", default_path("q8_0"))
    _write_ours(given.folder)
    samples: Samples = {_row(depth): [] for depth in DEPTHS}
    bandwidths: list[float] = []
    for turn in range(given.turns):
        bandwidths += measure_bandwidth(threads=given.threads).samples
        ours, theirs, traffic = _turn(turn, given.folder, gguf, given.threads)
        for row, pairs in samples.items():
            pairs.append({"ours_s": ours[row], "theirs_s": theirs[row]})
            sys.stderr.write(f"turn {turn} {row}: {pairs[-1]}\n")
        record = _record(samples, median(bandwidths), traffic, given.threads)
        merge_results({"ratios": ratios(samples), "samples": samples, "int8": record})
    sys.stdout.write(json.dumps(ratios(samples), indent=1) + "\n")
    return 0


def _record(
    samples: Samples, bandwidth: float, traffic: Traffic, threads: int
) -> dict[str, object]:
    limit_s = traffic.at(0) / (bandwidth * 1e9)
    share = median(limit_s / pair["ours_s"] for pair in samples[_row(0)])
    return {
        "conditions": conditions(("onnxruntime", "numpy"), threads=threads),
        "bandwidth_gb_s": round(bandwidth, 2),
        "bytes_per_token": {str(depth): traffic.at(depth) for depth in DEPTHS},
        "limit_share_0": round(share, 3),
    }


def ratios(samples: Samples) -> dict[str, float]:
    """Reduce pairs to the median of their ratios; above 1 means that ours is faster."""
    return {row: round(ratio(pairs), 3) for row, pairs in samples.items()}


def _row(depth: int) -> str:
    return f"int8_decode_{depth}"


def _write_ours(folder: Path) -> None:
    from export.recipe.reading import load_recipe

    if not folder.exists():
        write_repeated(folder, load_recipe(str(RECIPE)), max_tokens=2048)


class _Turn(NamedTuple):
    ours: Seconds
    theirs: Seconds
    traffic: Traffic


def _turn(turn: int, folder: Path, gguf: Path, threads: int) -> _Turn:
    """Open, time and end both sides, ours first in even turns."""
    if turn % 2 == 0:
        ours = _in_own_process(folder, threads)
        theirs = _measure_theirs(gguf, threads)
    else:
        theirs = _measure_theirs(gguf, threads)
        ours = _in_own_process(folder, threads)
    return _Turn(ours=ours.seconds, theirs=theirs, traffic=ours.traffic)


def _in_own_process(folder: Path, threads: int) -> Ourside:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_ours, folder, threads).result()


def _measure_ours(folder: Path, threads: int) -> Ourside:
    _wait_for_memory()
    ours = Ours(folder, threads=threads, weights="packed")
    return Ourside(seconds=_decoded(ours.decode), traffic=ours.traffic())


def _measure_theirs(gguf: Path, threads: int) -> Seconds:
    _wait_for_memory()
    with LlamaCpp.open(gguf, threads=threads, max_depth=max(DEPTHS)) as theirs:
        return _decoded(theirs.decode)


def _wait_for_memory() -> None:
    end = monotonic() + PATIENCE_S
    while (found := available_bytes()) < NEEDED_BYTES:
        if monotonic() > end:
            raise CapacityError(
                f"int8 at the released sizes needs {NEEDED_BYTES / 1e9:.1f} GB of available "
                f"memory, found {found / 1e9:.1f} GB; end other programs"
            )
        sleep(1)


def _decoded(decode: Callable[[int, int], list[float]]) -> Seconds:
    decode(0, WARMING)
    return {_row(depth): median(decode(depth, DECODED)) for depth in DEPTHS}


if __name__ == "__main__":
    sys.exit(main())
