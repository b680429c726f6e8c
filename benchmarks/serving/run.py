"""Measure the server, print the figures, and merge them into `benchmarks/serving/results.json`.

    python -m benchmarks.serving.run nano                       # compiled into out/bench/serving
    python -m benchmarks.serving.run released out/bench/int4    # built with 8 slots or more

nano: 16 clients of a server with 16 slots, beside 16 clients of one with a single slot, which
queues them. released: 8 clients of one server beside a lone client of it.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.load.asked import Question

from ..record import conditions, merge_into
from . import asked
from .mixed import Way, time_ways
from .process import serving
from .second_turn import time_second_turn

RESULTS = Path(__file__).with_name("results.json")
WORKPLACE = Path("out/bench/serving")
_TEXT_SHARE = 0.25
_PACKAGES = ("onnxruntime", "numpy", "starlette", "uvicorn")


def measure_nano(workplace: Path, *, rounds: int, requests: int) -> dict[str, Any]:
    """Measure the small trained model, fp32; its answers of up to 48 tokens are real ones."""
    together = asked.compile_nano(workplace / "nano-16", num_slots=16)
    one_at_a_time = asked.compile_nano(workplace / "nano-1", num_slots=1)
    questions = asked.nano_questions(rounds * requests, text_share=_TEXT_SHARE)
    with serving(together) as several, serving(one_at_a_time) as single:
        ways = {
            "together": Way(url=several, clients=16),
            "one_at_a_time": Way(url=single, clients=16),
        }
        mixed = time_ways(ways, _cut(questions, requests), max_new_tokens=48)
    with serving(together) as url:
        return {"mixed": mixed, "second_turn": time_second_turn(url, asked.nano_pictures(60))}


def measure_released(artifact: Path, *, rounds: int, requests: int) -> dict[str, Any]:
    """Measure an artifact of the released sizes, whose answers need not mean anything."""
    questions = asked.long_questions(rounds * requests)
    with serving(artifact) as url:
        ways = {"together": Way(url=url, clients=8), "lone_client": Way(url=url, clients=1)}
        mixed = time_ways(ways, _cut(questions, requests), max_new_tokens=64)
        return {"mixed": mixed, "second_turn": time_second_turn(url, asked.noise_pictures(6))}


def main() -> None:
    """Read the arguments, measure, print and merge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.run")
    parser.add_argument("model", choices=("nano", "released"))
    parser.add_argument("artifact", type=Path, nargs="?", help="of the released sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, help="of each round (96 of nano, 16 of released)")
    given = parser.parse_args()
    if given.model == "nano":
        found = measure_nano(WORKPLACE, rounds=given.rounds, requests=given.requests or 96)
    elif given.artifact is None:
        parser.error("which artifact?")
    else:
        found = measure_released(given.artifact, rounds=given.rounds, requests=given.requests or 16)
    sys.stdout.write(json.dumps(_without_samples(found), indent=1) + "\n")
    told = conditions(_PACKAGES, threads=len(os.sched_getaffinity(0)))
    merge_into(RESULTS, {given.model: {**found, "conditions": told}})


def _cut(questions: Sequence[Question], size: int) -> list[Sequence[Question]]:
    return [questions[start : start + size] for start in range(0, len(questions), size)]


def _without_samples(found: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what only the file holds."""
    return {
        name: {key: value for key, value in part.items() if key not in ("rounds", "pairs")}
        for name, part in found.items()
    }


if __name__ == "__main__":
    main()
