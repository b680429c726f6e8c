"""A server in a process of its own, and the counts that it tells."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep
from typing import IO
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families as families_of

_TOOL = Path(__file__).parents[2] / "tool.py"
_ADDRESS = re.compile(r"^serving .* at (http://\S+)$", re.MULTILINE)
_START_S, _END_S, _POLL_S = 600.0, 60.0, 0.05


@contextmanager
def serving(artifact: Path) -> Iterator[str]:
    """Serve an artifact on a free port of this machine, and give the address.

    Raises:
        RuntimeError: the server ended, or was not there in ten minutes.
    """
    with TemporaryFile("w+") as log:
        words = [sys.executable, str(_TOOL), "serve", str(artifact), "--port", "0"]
        process = subprocess.Popen(words, stderr=log, stdout=subprocess.DEVNULL)
        try:
            yield _await_address(process, log)
        finally:
            process.terminate()
            process.wait(_END_S)


def read_counts(url: str) -> dict[str, float]:
    """Read the server's metrics that have no label, by name."""
    with urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    samples = (sample for family in families_of(text) for sample in family.samples)
    return {sample.name: sample.value for sample in samples if not sample.labels}


def _await_address(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    end = monotonic() + _START_S
    while monotonic() < end:
        log.seek(0)
        text = log.read()
        if found := _ADDRESS.search(text):
            return found[1]
        if process.poll() is not None:
            break
        sleep(_POLL_S)
    raise RuntimeError(f"the server is not there: {text}")
