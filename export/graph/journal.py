"""What a stage has finished so far, so that a killed run goes on where it stopped.

One JSON line per finished file, appended after its rename; the first line is the key of the inputs.
The journal goes when the stage is done: a finished artifact is the same however often it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.artifact.manifest import FileRecord
from runtime.errors import ArtifactError
from runtime.files import resolve_inside, write_bytes


def key_of(inputs: Mapping[str, Any]) -> str:
    """Hash whatever decides the result of a stage."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class Journal:
    """The record of one stage in one artifact folder."""

    def __init__(self, folder: Path, stage: str, key: str) -> None:
        """Open or begin the journal.

        Raises:
            ArtifactError: the folder holds an unfinished run with other inputs.
        """
        self._folder = folder
        self._path = folder / f".{stage}.journal"
        self.files: dict[str, FileRecord] = {}
        if self._path.exists():
            self._read(stage, key)
        else:
            write_bytes(self._path, json.dumps({"key": key}).encode() + b"\n")

    def ensure(self, name: str, make: Callable[[Path], FileRecord]) -> FileRecord:
        """Return the record of a file, making the file first if it is not there yet.

        Args:
            name: path in the folder.
            make: writes the file at the path it is given, as a whole.
        """
        path = resolve_inside(self._folder, name)
        record = self.files.get(name)
        if record and path.is_file() and path.stat().st_size == record.bytes:
            return record
        record = make(path)
        self.files[name] = record
        with self._path.open("ab") as file:
            file.write(json.dumps({"file": name, **asdict(record)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def close(self) -> None:
        """Remove the journal; the stage is done."""
        self._path.unlink(missing_ok=True)

    def _read(self, stage: str, key: str) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines()
        entries = [entry for line in lines if (entry := _parse(line)) is not None]
        if not entries or entries[0].get("key") != key:
            raise ArtifactError(
                f"{self._folder}: holds an unfinished {stage} with other inputs "
                "(checkpoint, recipe, layers or versions); choose another folder or remove it"
            )
        for entry in entries[1:]:
            record = FileRecord(bytes=entry["bytes"], sha256=entry["sha256"])
            self.files[entry["file"]] = record


def _parse(line: str) -> dict[str, Any] | None:
    """Read one line; a line that was cut off by a kill counts as not written."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
