"""How fast this machine reads memory: the roof over every decoding speed.

    python -m benchmarks.cpu.bandwidth [THREADS]

Only reads, on huge pages, from a buffer that no cache holds. The buffer is new every time: what
the machine gives can differ from one process to the next, so measure in the run it is for.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .native import compile_program, run_step

SOURCE = Path(__file__).with_name("bandwidth.c")
PROGRAM = Path("out/peers/bandwidth")
BUFFER_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Read-only bandwidth in GB/s, 1e9 bytes per second."""

    samples: tuple[float, ...]
    """One for each time that the whole buffer was read."""

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.samples)


def measure_bandwidth(
    *,
    threads: int = 2,
    buffer_bytes: int = BUFFER_BYTES,
    passes: int = 7,
    program: Path = PROGRAM,
) -> Bandwidth:
    """Read a buffer several times; two seconds at the default sizes.

    Args:
        threads: each reads its share of the buffer.
        buffer_bytes: well above the last cache.
        passes: how often the whole buffer is read.
        program: where the compiled program is, or is put.

    Raises:
        UnsupportedError: there is no gcc.
        KimiVLError: the program failed, for example for want of memory.
    """
    compile_program(program, "gcc", SOURCE, ["-O3"], libraries=[])
    words = [str(program.absolute()), str(threads), str(buffer_bytes), str(passes)]
    return Bandwidth(samples=tuple(json.loads(run_step(words))["gb_s"]))


if __name__ == "__main__":
    result = measure_bandwidth(threads=int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    sys.stdout.write(f"{result.median:.1f} GB/s, samples {result.samples}\n")
