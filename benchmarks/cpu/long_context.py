"""Long contexts at the released sizes: 32K tokens prefilled, 128K in the cache.

    python -m benchmarks.cpu.long_context [FOLDER] [--prefill 32768] [--deep 131072]

FOLDER is an artifact of the released sizes, out/bench/int4 if it is left out. It is opened with a
cache of 131,072 tokens, whatever its manifest says, which is all that `tool.py build FOLDER
--max-kv-cache-capacity 131072` would change. Takes 13 GiB of memory and half an hour, nearly all
of it the prefill, which `--prefill 8192` cuts short.

Prefills random tokens for real and decodes behind them. Then fills the cache up to 128K with drawn
latents, decodes there, and prefills one chunk more. Speed does not depend on values.

Adds `long_context` to `benchmarks/cpu/results.json`.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.measure.disturbance import DisturbanceWatch
from engines.measure.memory import MemoryWatch, resident
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.names import CACHE, CACHE_KEYS, CACHE_SCALES

from ..record import conditions
from .results import merge_results

FOLDER = Path("out/bench/int4")
MAX_TOKENS = 131_072
SECTION = 4096
DECODED = 8
ALLOWED_BYTES = 24 << 30
"""Anonymous memory at the peak."""


def main() -> int:
    """Measure and add the results; 1 if it took more memory than is allowed."""
    parser = argparse.ArgumentParser(description="long contexts at the released sizes")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--prefill", type=int, default=32_768, help="tokens; 0 leaves it out")
    parser.add_argument("--deep", type=int, default=MAX_TOKENS, help="tokens; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with MemoryWatch() as memory:
        work = LongContext(given.folder, given.threads)
        found["open_bytes"] = resident().anonymous
        if given.prefill:
            found["prefilled"] = work.measure_prefill(given.prefill)
        if given.deep:
            found["deep"] = work.measure_deep(given.deep)
    found["peak_bytes"] = memory.peak.anonymous
    found["conditions"] = conditions(("onnxruntime", "numpy"), threads=given.threads)
    merge_results({"long_context": found})
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return int(memory.peak.anonymous > ALLOWED_BYTES)


def with_capacity(artifact: Artifact, max_tokens: int) -> Artifact:
    """Give an artifact on the same files whose target `cpu` has a longer cache."""
    target = artifact.target("cpu")
    limits = replace(target.limits, max_tokens=max_tokens, max_input_tokens=max_tokens)
    targets = {**artifact.manifest.targets, "cpu": replace(target, limits=limits)}
    return replace(artifact, manifest=replace(artifact.manifest, targets=targets))


class LongContext:
    """An open engine with a cache of full length."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Open it, weights packed."""
        artifact = with_capacity(Artifact.open(folder), MAX_TOKENS)
        self._engine = CpuEngine(artifact, num_threads=threads, weights="packed")
        self._random = np.random.default_rng(3)

    def measure_prefill(self, num_tokens: int) -> dict[str, Any]:
        """Prefill random tokens in chunks, in sections of 4K; decode behind them."""
        others, sections = DisturbanceWatch(), []
        for start in range(0, num_tokens, SECTION):
            size = min(SECTION, num_tokens - start)
            with others.timed():
                sections.append(self._prefill(start, size))
            sys.stderr.write(f"prefill to {start + size}: {size / sections[-1]:.1f} tokens/s\n")
        with others.timed():
            decoded = self._decode(num_tokens)
        return {
            "tokens": num_tokens,
            "seconds": sum(sections),
            "section_tokens": SECTION,
            "sections_s": sections,
            "decode_samples_s": decoded,
            "disturbance": others.total.fields(),
        }

    def measure_deep(self, num_tokens: int) -> dict[str, Any]:
        """Fill the cache with drawn latents; decode and prefill a chunk at its very end."""
        for buffers in self._engine._cache.whole(slice(0, 1)):
            _draw_layer(buffers, num_tokens, self._random)
        chunk, others = self._engine.limits.prefill_chunk, DisturbanceWatch()
        with others.timed():
            decoded = self._decode(num_tokens - DECODED - 2)
            chunk_s = self._step(num_tokens - chunk, chunk)
        sys.stderr.write(
            f"at {num_tokens}: a token {median(decoded):.3f} s, {chunk} tokens {chunk_s:.1f} s\n"
        )
        return {
            "tokens": num_tokens,
            "decode_samples_s": decoded,
            "chunk_tokens": chunk,
            "chunk_s": chunk_s,
            "disturbance": others.total.fields(),
        }

    def _decode(self, depth: int) -> list[float]:
        """Decode behind `depth` tokens, two more of them unmeasured: seconds for each."""
        for place in range(2):
            self._step(depth + place, 1)
        return [self._step(depth + 2 + place, 1) for place in range(DECODED)]

    def _prefill(self, start: int, num_tokens: int) -> float:
        chunk, end = self._engine.limits.prefill_chunk, start + num_tokens
        return sum(self._step(place, min(chunk, end - place)) for place in range(start, end, chunk))

    def _step(self, place: int, tokens: int) -> float:
        ids = self._random.integers(0, self._engine.vocab_size, tokens)
        hidden = self._engine.embed(ids)[None]
        start = perf_counter()
        self._engine.step_greedy([0], hidden, np.array([place]), np.array([tokens - 1]))
        return perf_counter() - start


def _draw_layer(
    buffers: Mapping[str, NDArray[Any]], num_tokens: int, random: np.random.Generator
) -> None:
    """Write codes, scales and keys as a layer would: latents and keys of about 1."""
    codes = buffers[CACHE][0, 0, :num_tokens]
    codes[:] = random.integers(-127, 128, codes.shape, dtype=np.int8)
    scales = buffers[CACHE_SCALES][0, 0, :num_tokens]
    scales[:] = random.uniform(0.5, 1.5, scales.shape) / 74  # the deviation of such codes
    keys = buffers[CACHE_KEYS][0, 0, :num_tokens]
    keys[:] = random.standard_normal(keys.shape, dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())
