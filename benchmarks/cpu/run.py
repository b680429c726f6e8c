r"""The released sizes on this CPU beside llama.cpp, in turn, in one run.

    python -m benchmarks.cpu.llama_cpp build
    python -m benchmarks.cpu.full_artifact out/bench/int4 \
        --recipe benchmarks/cpu/int4-head4-kv8.toml
    python -m benchmarks.cpu.run out/bench/int4

Takes 20 GiB of memory and half an hour; the first time also what llama.cpp needs to fill its cache.
Every pair is ours and theirs one behind the other, in changing order; a ratio is the median over
the pairs. Writes `benchmarks/cpu/results.json`.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from engines.cpu.traffic import Traffic
from engines.measure.bandwidth import measure_bandwidth
from engines.measure.machine import cpu_name

from .gguf_model import default_path
from .llama_cpp import LlamaCpp
from .ours import Ours
from .results import merge_results, ratio

DEPTHS = (0, 1024, 4096, 8192)
DECODED = 16
PROMPT = 512


class Side(Protocol):
    """What is measured: ours or theirs."""

    def decode(self, depth: int, tokens: int) -> list[float]:
        """Seconds for each token."""

    def prefill(self, tokens: int, depth: int = 0) -> float:
        """Seconds for a prompt."""


def measure(ours: Side, theirs: Side, *, turns: int) -> dict[str, list[dict[str, Any]]]:
    """Take all samples: for each row a list of pairs, seconds (decode: the median token's)."""
    rows: dict[str, list[dict[str, Any]]] = {f"decode_{depth}": [] for depth in DEPTHS}
    rows[f"prefill_{PROMPT}"] = []
    for turn in range(turns):
        for depth in DEPTHS:
            pair = _pair(ours, theirs, lambda side, d=depth: median(side.decode(d, DECODED)), turn)
            rows[f"decode_{depth}"].append(pair)
            sys.stderr.write(f"turn {turn} decode {depth}: {pair}\n")
        pair = _pair(ours, theirs, lambda side: side.prefill(PROMPT), turn)
        rows[f"prefill_{PROMPT}"].append(pair)
        sys.stderr.write(f"turn {turn} prefill: {pair}\n")
    return rows


def _pair(ours: Side, theirs: Side, work: Any, turn: int) -> dict[str, Any]:  # noqa: ANN401  a function
    sides = {"ours_s": ours, "theirs_s": theirs}
    order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
    found: dict[str, Any] = {}
    for name in order:
        found[name] = work(sides[name])
    return found


def ratios(
    rows: dict[str, list[dict[str, Any]]], traffic: Traffic, bandwidth: float
) -> dict[str, float]:
    """Reduce the samples; above 1 means that ours is faster."""
    found = {name: ratio(pairs) for name, pairs in rows.items()}
    shallow, deep = rows["decode_0"], rows[f"decode_{DEPTHS[-1]}"]
    found[f"depth_{DEPTHS[-1]}_over_0"] = median(
        first["ours_s"] / last["ours_s"] for first, last in zip(shallow, deep, strict=True)
    )
    limit_s = traffic.at(0) / (bandwidth * 1e9)
    found["limit_share_0"] = median(limit_s / pair["ours_s"] for pair in shallow)
    return {name: round(value, 3) for name, value in found.items()}


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description="the released sizes beside llama.cpp")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    before = measure_bandwidth(threads=given.threads)
    ours = Ours(given.artifact, threads=given.threads)
    with LlamaCpp.open(default_path("q4_0"), threads=given.threads) as theirs:
        rows = measure(ours, theirs, turns=given.turns)
        features = theirs.cpu_features
        ggml = theirs.ggml_version
    after = measure_bandwidth(threads=given.threads)
    bandwidth = before.plus(after)
    traffic = ours.traffic()
    results = {
        "machine": {"cpu": cpu_name(), "threads": given.threads, "instructions": features},
        "versions": {
            "python": platform.python_version(),
            "ggml": ggml,
            **{name: version(name) for name in ("onnxruntime", "numpy")},
        },
        "ratios": ratios(rows, traffic, bandwidth.median),
        "bandwidth_gb_s": round(bandwidth.median, 2),
        "bandwidth_samples": list(bandwidth.samples),
        "bytes_per_token": {str(depth): traffic.at(depth) for depth in DEPTHS},
        "samples": rows,
    }
    merge_results(results)
    sys.stdout.write(json.dumps(results["ratios"], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
