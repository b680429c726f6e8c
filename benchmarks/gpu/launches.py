"""What one recorded step launches on a card, told without one.

    python -m benchmarks.gpu.launches ARTIFACT --packages out/gpu/lib/python3.11/site-packages

A token of a small batch costs a card little but its launches: each is some microseconds, and most
kernels do less work than that. The provider of the real package runs over stand-ins for CUDA's
libraries, as in `placement`, and tells what it launches while it records.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runtime.artifact.folder import Artifact
from runtime.errors import KimiVLError

from .placement import add_packages, decoder_of, run_session

_LAUNCH = re.compile(r"^launch (\d+) (.+)$", re.MULTILINE)


def main(words: Sequence[str]) -> int:
    """Print launches as JSON, all of them and by name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.launches")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--batch", type=int, default=1, help="slots")
    parser.add_argument("--window", type=int, default=1024, help="tokens that attention reads")
    add_packages(parser)
    given = parser.parse_args(words)
    try:
        graph = decoder_of(Artifact.open(given.artifact))
        told = run_session(given.packages, graph, str(given.batch), str(given.window))
    except KimiVLError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    by_name = read_launches(told)
    shown = {"launches": by_name.total(), "by_name": dict(by_name.most_common())}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 0


def read_launches(told: str) -> Counter[str]:
    """Count what stand-ins tell, by readable names."""
    found: Counter[str] = Counter()
    for count, name in _LAUNCH.findall(_readable(told)):
        found[name] += int(count)
    return found


def _readable(text: str) -> str:
    """Undo the mangling of C++ names."""
    command = ["c++filt", "-p"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
