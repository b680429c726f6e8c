"""How fast this machine reads memory: the roof over every decoding speed.

    python -m benchmarks.cpu.bandwidth [THREADS]

Only reads, on huge pages, from a buffer that no cache holds; with the loop of `make ops` if it is
there. What the machine gives can differ from one process to the next: measure in the run it is for.
"""

import os
import sys

from engines.measure.bandwidth import measure_bandwidth

if __name__ == "__main__":
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0))
    result = measure_bandwidth(threads=threads)
    sys.stdout.write(
        f"{result.median:.1f} GB/s, read by {result.reader}, samples {result.samples}\n"
    )
