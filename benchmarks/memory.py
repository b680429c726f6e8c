"""Anonymous memory of an export at the released sizes: two layers, both towers, embedding, head.

    python -m benchmarks.memory [FOLDER]      FOLDER gets 6 GB, default out/bench/memory

Exits with 1 if the peak is over 4 GiB. The weights are random and made as they are read.
"""

import sys
import threading
import time
from pathlib import Path

ALLOWED_BYTES = 4 << 30


def main(workplace: Path) -> int:
    """Export and build while a thread watches; print the peak."""
    from engines.build import BuildOptions, build_target
    from export.checkpoint.reader import Checkpoint
    from export.recipe.reading import load_recipe
    from export.stage import ExportOptions, export_checkpoint
    from export.synthetic.folder import write_synthetic

    if not (workplace / "checkpoint").exists():
        write_synthetic(workplace / "checkpoint", shape="full")
    watch = PeakWatch()
    watch.start()
    checkpoint = Checkpoint.open(workplace / "checkpoint", layers=(0, 1))
    options = ExportOptions(recipe=load_recipe("bf16"), layers=(0, 1))
    export_checkpoint(checkpoint, workplace / "artifact", options)
    build_target(workplace / "artifact", "cpu", BuildOptions())
    peak = watch.peak_bytes
    sys.stdout.write(f"peak of anonymous memory: {peak / (1 << 30):.2f} GiB, allowed 4\n")
    return int(peak > ALLOWED_BYTES)


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
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/bench/memory")))
