r"""Everything that a card can tell about target `cuda`, by one command.

    pip install -e '.[tool,plans]' transformers==5.23.0 && pip install -e '.[cuda]'
    pip uninstall -y onnxruntime
    pip install --force-reinstall --no-deps onnxruntime-gpu
    python -m benchmarks.gpu.run [--artifact FOLDER]

Without an artifact the released sizes are written with random weights in int4 (17 GB, some
minutes). Takes about an hour; a part that fails or does not fit is left out, with the reason, and
every row stays as soon as it is done. Writes `benchmarks/gpu/results.json`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from engines.measure.machine import describe_versions
from export.recipe.reading import load_recipe
from runtime.errors import KimiVLError

from ..cpu.full_artifact import write_full_artifact
from .card import PACKAGES, Memory, describe_card
from .parts import EVERY_ROW, LARGEST_IMAGE, PARTS, TARGET, Asked, describe
from .results import VERSIONS, WANTED, Results
from .rows import LEFT_OUT, SAMPLES, Found, Wanted, reason_of

RESULTS = Path(__file__).with_name("results.json")
DEFAULT_ARTIFACT = Path("out/bench/gpu-int4")
RECIPE = "int4"
_MAX_TOKENS = 8448


def main(
    words: Sequence[str],
    *,
    load_memory: Callable[[], Memory] = Memory.load,
    results: Path = RESULTS,
) -> int:
    """Run all parts, or one; 1 where there is no card, no artifact, or a part failed."""
    given = _parser().parse_args(words)
    try:
        card = describe_card(load_memory())
    except KimiVLError as error:
        return _fail(f"no card to measure: {error}")
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
    file = Results(results)
    try:
        if given.artifact is None:
            write_default(DEFAULT_ARTIFACT)
        conditions = {"card": asdict(card), "asked": describe(asked)}
        if given.only:
            file.begin_part(given.only, conditions)
            return run_part(given.only, asked, file)
        file.begin(conditions)
    except KimiVLError as error:
        return _fail(str(error))
    failed = [name for name in PARTS if _start_part(name, words) != 0]
    sys.stdout.write(json.dumps(file.finish(failed=failed), indent=1) + "\n")
    return 1 if failed else 0


def run_part(name: str, asked: Asked, file: Results) -> int:
    """Run a part and keep what it finds as soon as it is found; 1 if it failed."""
    file.add(name, {VERSIONS: describe_versions(PACKAGES), WANTED: asdict(asked.wanted)})
    status = 0
    try:
        for found in PARTS[name](asked):
            file.add(name, found)
            _tell(found)
    except (KimiVLError, RuntimeError) as error:
        file.add(name, {LEFT_OUT: {EVERY_ROW: reason_of(error)}})
        status = _fail(f"part {name}: {type(error).__name__}: {error}")
    file.finish()
    return status


def _tell(found: Found) -> None:
    lines = [f"{row}: done" for row in found.get(SAMPLES, {})]
    lines += [f"{row}: left out: {reason}" for row, reason in found.get(LEFT_OUT, {}).items()]
    sys.stderr.writelines(f"{line}\n" for line in lines)


def _fail(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1


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


def write_default(folder: Path) -> None:
    """Write the released sizes with random weights, unless they are there; wholly or not at all.

    Raises:
        KimiVLError: it cannot be written.
    """
    if folder.exists():
        return
    begun = folder.with_name(f"{folder.name}.begun")
    if begun.exists():  # by a run that was killed
        shutil.rmtree(begun)
    write_full_artifact(
        begun,
        load_recipe(RECIPE),
        max_tokens=_MAX_TOKENS,
        target=TARGET,
        in_token_limit=LARGEST_IMAGE,
    )
    begun.replace(folder)


def _start_part(name: str, words: Sequence[str]) -> int:
    sys.stderr.write(f"part {name}\n")
    command = [sys.executable, "-m", "benchmarks.gpu.run", *words, "--only", name]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
