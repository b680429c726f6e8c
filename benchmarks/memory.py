"""Anonymous memory of the stages at the released sizes.

    python -m benchmarks.memory export [FOLDER]         at most 4 GiB; FOLDER gets 6 GB
    python -m benchmarks.memory calibrate [FOLDER]      at most 8 GiB; recipe int4, 12 conversations
    python -m benchmarks.memory build [FOLDER]          at most 8 GiB; FOLDER gets 17 GB

FOLDER is out/bench/memory if it is left out. Exits with 1 if the peak is over what is allowed.

Exported and calibrated are two layers, both towers, embedding and head; the weights are random and
made as they are read, so the gate's budget is wide open. Built is the whole model in int4, from
graphs with random codes in FOLDER/full, which are written first if they are missing.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.measure.memory import MemoryWatch

if TYPE_CHECKING:
    from export.checkpoint.reader import Checkpoint

GIB = 1 << 30
LAYERS = (0, 1)
COFFEE = Path(__file__).parents[1] / "examples" / "coffee.jpg"

Work = Callable[[], object]


def main(name: str, workplace: Path) -> int:
    """Run one stage while a thread watches; print the peak."""
    stage = STAGES[name]
    work = stage.prepare(workplace)
    started = time.monotonic()
    with MemoryWatch() as watch:
        work()
    peak = watch.peak.anonymous
    sys.stdout.write(
        f"{name}: {peak / GIB:.2f} GiB of anonymous memory at the peak, "
        f"allowed {stage.allowed_bytes / GIB:.0f}; {time.monotonic() - started:.0f} s\n"
    )
    return int(peak > stage.allowed_bytes)


def _prepare_export(workplace: Path) -> Work:
    from engines.build import build_target
    from engines.options import BuildOptions
    from export.recipe.reading import load_recipe
    from export.stage import ExportOptions, export_checkpoint

    checkpoint, folder = _checkpoint(workplace), workplace / "artifact"
    options = ExportOptions(recipe=load_recipe("bf16"), layers=LAYERS)

    def work() -> None:
        export_checkpoint(checkpoint, folder, options)
        build_target(folder, "cpu", BuildOptions())

    return work


def _prepare_calibrate(workplace: Path) -> Work:
    from calibration.data.conversations import DataOptions
    from calibration.price.gate import GateLimits
    from calibration.stage import CalibrateOptions, calibrate_checkpoint
    from export.recipe.reading import load_recipe
    from export.recipe.recipe import Budget
    from export.stage import ExportOptions

    checkpoint = _checkpoint(workplace)
    data = workplace / "conversations.jsonl"
    (workplace / COFFEE.name).write_bytes(COFFEE.read_bytes())
    data.write_text("".join(f"{json.dumps(_conversation(i))}\n" for i in range(15)))
    options = CalibrateOptions(
        export=ExportOptions(recipe=load_recipe("int4"), layers=LAYERS),
        data=DataOptions(data=str(data)),
        limits=GateLimits(max_fallback_share=1.0, budget=Budget(kl=1e9, top1=0.0)),
    )
    return lambda: calibrate_checkpoint(checkpoint, workplace / "quantised", options)


def _prepare_build(workplace: Path) -> Work:
    from engines.build import build_target
    from engines.options import BuildOptions
    from export.recipe.reading import load_recipe
    from runtime.artifact.manifest import Manifest

    from .cpu.full_artifact import write_full_artifact

    folder = workplace / "full"
    if not folder.exists():
        write_full_artifact(folder, load_recipe("int4-kv8"), max_tokens=8192)
    manifest = Manifest.read(folder)  # without its target: what is there already is not built
    neutral = {path: one for path, one in manifest.files.items() if ".cpu." not in path}
    replace(manifest, files=neutral, targets={}).write(folder)
    return lambda: build_target(folder, "cpu", BuildOptions())


def _checkpoint(workplace: Path) -> "Checkpoint":
    from export.checkpoint.reader import Checkpoint
    from export.synthetic.folder import write_synthetic

    if not (workplace / "checkpoint").exists():
        write_synthetic(workplace / "checkpoint", shape="full")
    return Checkpoint.open(workplace / "checkpoint", layers=LAYERS)


def _conversation(index: int) -> dict[str, Any]:
    text = {"type": "text", "text": f"Question {index}: " + "what is in this picture? " * 20}
    image = [{"type": "image", "image": COFFEE.name}] if index % 3 == 0 else []
    return {"messages": [{"role": "user", "content": [*image, text]}]}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is watched, and what it may take."""

    prepare: Callable[[Path], Work]
    """Writes to a folder what is missing, unwatched, and gives the work."""
    allowed_bytes: int


STAGES = {
    "export": Stage(prepare=_prepare_export, allowed_bytes=4 * GIB),
    "calibrate": Stage(prepare=_prepare_calibrate, allowed_bytes=8 * GIB),
    "build": Stage(prepare=_prepare_build, allowed_bytes=8 * GIB),
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "out/bench/memory")))
