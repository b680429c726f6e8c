"""Memory that this process holds: what is its own, and what is mapped from files.

Source: `/proc/self/status`, which Linux alone has.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_STATUS = Path("/proc/self/status")
_INTERVAL_S = 0.1


class Resident(NamedTuple):
    """Bytes in memory, by what they belong to."""

    anonymous: int
    file: int
    """Pages of mapped files: the system may take them back."""


def resident() -> Resident:
    """Read what is in memory now."""
    kilobytes = {"RssAnon": 0, "RssFile": 0}
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name in kilobytes:
            kilobytes[name] = int(value.split()[0])
    return Resident(anonymous=1024 * kilobytes["RssAnon"], file=1024 * kilobytes["RssFile"])


class MemoryWatch:
    """Keeps the largest readings of each kind, taken ten times a second inside a `with` block."""

    def __init__(self) -> None:
        self.peak = Resident(0, 0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            now = resident()
            self.peak = Resident(*map(max, self.peak, now))
            if self._is_over.wait(_INTERVAL_S):
                break
        self.peak = Resident(*map(max, self.peak, resident()))
