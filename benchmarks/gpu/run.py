r"""Everything that a card can tell about target `cuda`, by one command.

    pip install -e '.[tool,plans]' && pip install -e '.[cuda]'
    pip uninstall -y onnxruntime
    pip install --force-reinstall --no-deps onnxruntime-gpu
    python -m benchmarks.gpu.run [--artifact FOLDER]

Without an artifact the released sizes are written with random weights in int4 (10 GB, some
minutes). Takes about an hour; a part that fails or does not fit is left out, with the reason, and
what is done already stays. Adds to `benchmarks/gpu/results.json`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.recipe.reading import load_recipe
from runtime.errors import KimiVLError

from ..cpu.full_artifact import write_full_artifact
from ..record import merge_into
from .card import Memory, describe_card, versions
from .parts import PARTS, TARGET, Asked, describe
from .rows import Wanted, figures, ratios

RESULTS = Path(__file__).with_name("results.json")
DEFAULT_ARTIFACT = Path("out/bench/gpu-int4")
RECIPE = "int4"
_PEERS = ("eager", "compiled")


def main(
    words: Sequence[str],
    *,
    load_memory: Callable[[], Memory] = Memory.load,
    results: Path = RESULTS,
) -> int:
    """Run all parts, or one; 1 where there is no card or a part failed."""
    given = _parser().parse_args(words)
    try:
        card = describe_card(load_memory())
    except KimiVLError as error:
        sys.stderr.write(f"no card to measure: {error}\n")
        return 1
    asked = Asked(
        artifact=given.artifact or DEFAULT_ARTIFACT,
        wanted=Wanted(
            batches=given.batches,
            depths=given.depths,
            long_depths=given.long_depths,
            repeats=given.repeats,
        ),
        prefill_chunk=given.prefill_chunk,
    )
    if given.only:
        merge_into(results, PARTS[given.only](asked))
        return 0
    _write_if_missing(given.artifact)
    conditions = {"card": asdict(card), "versions": versions(), "asked": describe(asked)}
    merge_into(results, conditions)
    failed = [name for name in PARTS if _run_part(name, words) != 0]
    merge_into(results, {"failed": failed})
    summarise(results)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(one) for one in text.split(",") if one)

    usual = Wanted()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.run")
    parser.add_argument("--artifact", type=Path, help="built for target cuda")
    parser.add_argument("--batches", type=numbers, default=usual.batches)
    parser.add_argument("--depths", type=numbers, default=usual.depths)
    parser.add_argument("--long-depths", type=numbers, default=usual.long_depths)
    parser.add_argument("--repeats", type=int, default=usual.repeats)
    parser.add_argument("--prefill-chunk", type=int, default=512)
    parser.add_argument("--only", choices=PARTS, help="one part, in this process")
    return parser


def _write_if_missing(given: Path | None) -> None:
    """Write the released sizes with random weights where no artifact was given."""
    if given is None and not DEFAULT_ARTIFACT.exists():
        recipe = load_recipe(RECIPE)
        write_full_artifact(DEFAULT_ARTIFACT, recipe, max_tokens=8448, target=TARGET)


def _run_part(name: str, words: Sequence[str]) -> int:
    sys.stderr.write(f"part {name}\n")
    command = [sys.executable, "-m", "benchmarks.gpu.run", *words, "--only", name]
    return subprocess.run(command, check=False).returncode


def summarise(results: Path) -> None:
    """Reduce the samples in a file of results to figures and ratios, and print them."""
    found: dict[str, Any] = json.loads(results.read_text())
    samples = found.get("samples", {})
    ours = figures(samples.get("ours", {}))
    peers = {way: figures(samples[way]) for way in _PEERS if way in samples}
    shown = {**ours, "ratio_to_best_peer": ratios(ours, list(peers.values()))}
    merge_into(results, {**shown, "peers": peers})
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
