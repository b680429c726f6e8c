"""Anonymous memory at the released sizes: two layers, both towers, embedding, head.

    python -m benchmarks.memory export [FOLDER]         at most 4 GiB; FOLDER gets 6 GB
    python -m benchmarks.memory calibrate [FOLDER]      at most 8 GiB; recipe int4, 12 conversations

FOLDER is out/bench/memory if it is left out. Exits with 1 if the peak is over what is allowed. The
weights are random and made as they are read, so the gate's budget is wide open.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.checkpoint.reader import Checkpoint

GIB = 1 << 30
ALLOWED = {"export": 4 * GIB, "calibrate": 8 * GIB}
LAYERS = (0, 1)
COFFEE = Path(__file__).parents[1] / "examples" / "coffee.jpg"


def main(stage: str, workplace: Path) -> int:
    """Run one stage while a thread watches; print the peak."""
    from export.checkpoint.reader import Checkpoint
    from export.synthetic.folder import write_synthetic

    if not (workplace / "checkpoint").exists():
        write_synthetic(workplace / "checkpoint", shape="full")
    watch = PeakWatch()
    watch.start()
    started = time.monotonic()
    checkpoint = Checkpoint.open(workplace / "checkpoint", layers=LAYERS)
    {"export": _export, "calibrate": _calibrate}[stage](checkpoint, workplace)
    peak, allowed = watch.peak_bytes, ALLOWED[stage]
    sys.stdout.write(
        f"{stage}: {peak / GIB:.2f} GiB of anonymous memory at the peak, "
        f"allowed {allowed / GIB:.0f}; {time.monotonic() - started:.0f} s\n"
    )
    return int(peak > allowed)


def _export(checkpoint: "Checkpoint", workplace: Path) -> None:
    from engines.build import build_target
    from engines.options import BuildOptions
    from export.recipe.reading import load_recipe
    from export.stage import ExportOptions, export_checkpoint

    options = ExportOptions(recipe=load_recipe("bf16"), layers=LAYERS)
    export_checkpoint(checkpoint, workplace / "artifact", options)
    build_target(workplace / "artifact", "cpu", BuildOptions())


def _calibrate(checkpoint: "Checkpoint", workplace: Path) -> None:
    from calibration.data.conversations import DataOptions
    from calibration.price.gate import GateLimits
    from calibration.stage import CalibrateOptions, calibrate_checkpoint
    from export.recipe.reading import load_recipe
    from export.recipe.recipe import Budget
    from export.stage import ExportOptions

    data = workplace / "conversations.jsonl"
    (workplace / COFFEE.name).write_bytes(COFFEE.read_bytes())
    data.write_text("".join(f"{json.dumps(_conversation(i))}\n" for i in range(15)))
    options = CalibrateOptions(
        export=ExportOptions(recipe=load_recipe("int4"), layers=LAYERS),
        data=DataOptions(data=str(data)),
        limits=GateLimits(max_fallback_share=1.0, budget=Budget(kl=1e9, top1=0.0)),
    )
    calibrate_checkpoint(checkpoint, workplace / "quantised", options)


def _conversation(index: int) -> dict[str, Any]:
    text = {"type": "text", "text": f"Question {index}: " + "what is in this picture? " * 20}
    image = [{"type": "image", "image": COFFEE.name}] if index % 3 == 0 else []
    return {"messages": [{"role": "user", "content": [*image, text]}]}


class PeakWatch(threading.Thread):
    """Reads this process's anonymous memory twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        """Keep the largest reading, until the process ends."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            anonymous = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
            self.peak_bytes = max(self.peak_bytes, 1024 * int(anonymous))
            time.sleep(0.05)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ALLOWED:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "out/bench/memory")))
