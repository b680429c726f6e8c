"""What a stage has finished so far, so that a killed run goes on where it stopped.

One JSON line per finished file, appended after its rename; the first line is the key of the inputs.
The journal goes when the stage is done: a finished artifact is the same however often it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.artifact.records import FileRecord
from runtime.errors import ArtifactError
from runtime.files import announced, disk_errors_named, resolve_inside, write_bytes


def key_of(inputs: Mapping[str, Any]) -> str:
    """Hash whatever decides the result of a stage."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def journal_path(folder: Path, stage: str) -> Path:
    """Tell where the journal of a stage is while the stage runs."""
    return folder / f".{stage}.journal"


def remove_journal(folder: Path, stage: str) -> None:
    """Remove the journal of a finished stage; a kill may have come between its last two steps."""
    path = journal_path(folder, stage)
    if path.exists():
        with announced(f"removal of {path.name}"), disk_errors_named(path):
            path.unlink()


class Journal:
    """The record of one stage in one artifact folder."""

    def __init__(self, folder: Path, stage: str, key: str) -> None:
        """Open or begin the journal.

        Raises:
            ArtifactError: the folder holds an unfinished run with other inputs.
        """
        self._folder = folder
        self._stage = stage
        self._path = journal_path(folder, stage)
        self.files: dict[str, FileRecord] = {}
        if self._path.exists():
            self._read(stage, key)
        else:
            write_bytes(self._path, json.dumps({"key": key}).encode() + b"\n")

    @classmethod
    def replacing(cls, folder: Path, stage: str, key: str) -> "Journal":
        """Open or begin the journal of a stage whose files follow from others in the folder.

        What an unfinished run with other inputs made is removed.
        """
        try:
            return cls(folder, stage, key)
        except ArtifactError:
            _, *others = journal_path(folder, stage).read_bytes().split(b"\n")
            for name in _records(others):
                resolve_inside(folder, name).unlink(missing_ok=True)
            remove_journal(folder, stage)
            return cls(folder, stage, key)

    def ensure(self, name: str, make: Callable[[Path], FileRecord]) -> FileRecord:
        """Return the record of a file, making the file first if it is not there yet.

        Args:
            name: path in the folder.
            make: writes the file at the path it is given, as a whole.
        """
        path = resolve_inside(self._folder, name)
        if self.has(name):
            return self.files[name]
        record = make(path)
        self.files[name] = record
        line = json.dumps({"file": name, **asdict(record)}).encode() + b"\n"
        with (
            announced(f"note of {path.name}"),
            disk_errors_named(self._path),
            self._path.open("ab") as file,
        ):
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return record

    def has(self, name: str) -> bool:
        """Tell whether a file was finished and is still there."""
        record, path = self.files.get(name), self._folder / name
        return record is not None and path.is_file() and path.stat().st_size == record.bytes

    def close(self) -> None:
        """Remove the journal; the stage is done."""
        remove_journal(self._folder, self._stage)

    def _read(self, stage: str, key: str) -> None:
        first, *others = self._path.read_bytes().split(b"\n")
        if _parse(first) != {"key": key}:
            raise ArtifactError(
                f"{self._folder}: holds an unfinished {stage} with other inputs "
                "(checkpoint, recipe, layers or versions); choose another folder or remove it"
            )
        self.files = _records(others)


def _records(lines: Sequence[bytes]) -> dict[str, FileRecord]:
    """Read the files that were finished."""
    entries = [entry for entry in map(_parse, lines) if entry]
    return {
        entry["file"]: FileRecord(bytes=entry["bytes"], sha256=entry["sha256"])
        for entry in entries
        if entry.keys() == {"file", "bytes", "sha256"}
    }


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read one line; a line that was cut off by a kill counts as not written."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
