"""Run every benchmark, print a table, and write `benchmarks/results.json`.

python -m benchmarks.run [FOLDER]      FOLDER keeps the compiled models (default out/bench)
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from engines.measure.machine import cpu_name

from .decoder import CASES, time_case
from .pairs import Pair

RESULTS = Path(__file__).with_name("results.json")


def main(workplace: Path) -> None:
    """Time all cases, one after the other."""
    workplace.mkdir(parents=True, exist_ok=True)
    pairs = [pair for case in CASES for pair in time_case(case, workplace)]
    sys.stdout.write(as_table(pairs))
    RESULTS.write_text(json.dumps(as_record(pairs), indent=2) + "\n")


def as_table(pairs: list[Pair]) -> str:
    """Lay the pairs out for people."""
    lines = [f"{'work':44} {'ours ms':>9} {'torch ms':>9} {'torch / ours':>13}  (range)"]
    lines += [
        f"{pair.name:44} {pair.ours_ms:9.2f} {pair.torch_ms:9.2f} {pair.ratio:13.2f}"
        f"  ({min(pair.ratios):.2f} to {max(pair.ratios):.2f})"
        for pair in pairs
    ]
    return "\n".join(lines) + "\n"


def as_record(pairs: list[Pair]) -> dict[str, object]:
    """Results with the conditions that they were measured under."""
    names = ("torch", "onnxruntime", "numpy")
    return {
        "machine": {"processor": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "pairs": [{**asdict(pair), "ratio": pair.ratio} for pair in pairs],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/bench"))
