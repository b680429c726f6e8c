"""The file of results: rows of each part as they come, and none that an earlier run left.

Every section holds what each part found under the part's name. What follows from samples is beside
them and is reckoned anew from those that are there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.files import write_bytes

from ..record import merge_into
from .figures import image_seconds, ratios, speeds
from .rows import LEFT_OUT, SAMPLES, Found

MEMORY = "memory_bytes"
REPORTS = "reports"
VERSIONS = "versions"
WANTED = "wanted"
SECTIONS = (SAMPLES, LEFT_OUT, MEMORY, REPORTS, VERSIONS, WANTED)
IMAGES = "image_s"
RATIOS = "ratio_to_best_peer"
_PEERS = "peers"
_SPEEDS = tuple(speeds({}))
DERIVED = (*_SPEEDS, IMAGES, RATIOS, _PEERS, "failed")
PEERS = ("eager", "compiled")
"""The parts that measure others."""


class Results:
    """A JSON file that other keys may be in, which stay."""

    def __init__(self, path: Path) -> None:
        """Name the file, which may be missing."""
        self._path = path

    def begin(self, conditions: Mapping[str, Any]) -> None:
        """Forget all that was measured, and note with what the next parts are.

        Raises:
            KimiVLError: the file cannot be written.
        """
        kept = {
            name: value
            for name, value in self._read().items()
            if name not in (*SECTIONS, *DERIVED, *conditions)
        }
        self._write({**kept, **conditions})

    def begin_part(self, part: str, conditions: Mapping[str, Any]) -> None:
        """Forget what a part found; all parts' if those that are there had other conditions.

        Raises:
            KimiVLError: the file cannot be written.
        """
        found = self._read()
        if any(found.get(name) != json.loads(json.dumps(conditions[name])) for name in conditions):
            self.begin(conditions)
            return
        for section in SECTIONS:
            found.get(section, {}).pop(part, None)
        self._write({name: value for name, value in found.items() if name not in DERIVED})

    def add(self, part: str, found: Found) -> None:
        """Add to the sections what a part found.

        Raises:
            KimiVLError: the file cannot be written.
        """
        merge_into(self._path, {section: {part: value} for section, value in found.items()})

    def finish(self, **more: object) -> dict[str, Any]:
        """Reduce the samples to figures and ratios, write them and give them.

        Args:
            more: is written beside them.

        Raises:
            KimiVLError: the file cannot be written.
        """
        found = self._read()
        samples = found.get(SAMPLES, {})
        ours = {
            row: taken
            for part, rows in samples.items()
            if part not in PEERS
            for row, taken in rows.items()
        }
        mine = speeds(ours)
        peers = {part: speeds(samples[part]) for part in PEERS if part in samples}
        shown = {**mine, IMAGES: image_seconds(ours), RATIOS: ratios(mine, list(peers.values()))}
        self._write({**found, **shown, _PEERS: peers, **more})
        return shown

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return found

    def _write(self, found: Mapping[str, Any]) -> None:
        write_bytes(self._path, json.dumps(found, indent=1).encode() + b"\n")
