"""An artifact folder, opened and checked before anything in it is loaded.

At open every file is checked: graphs and small files by SHA-256; weight files by size, and by
SHA-256 unless an earlier check saw the same size and time of change. `verify` hashes everything.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import names
from ..errors import ArtifactError, KimiVLError, describe_problems
from ..files import exclusive, resolve_inside, sha256_of, write_bytes
from ..progress import Progress, silent
from .manifest import FILE_NAME, MODEL_FOLDER, Manifest
from .records import FileRecord, TargetRecord

CHECKED_FILE = ".checked.json"
"""Size and time of change of weight files whose hash was right; local to a machine."""

_Stamps = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A folder whose files are what the manifest says."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, folder: str | Path, *, rehash: bool = False, progress: Progress = silent
    ) -> "Artifact":
        """Read the manifest and check the files.

        Args:
            folder: made by `tool.py compile` or its stages.
            rehash: hash every file, whatever was checked before.
            progress: told in bytes.

        Raises:
            ArtifactError: a file is missing or is not what the manifest says; all are listed.
        """
        folder = Path(folder)
        _check_is_folder(folder)
        manifest = Manifest.read(folder)
        stamps = _read_stamps(folder)
        fresh = _check_files(folder, manifest, {} if rehash else stamps, progress)
        if fresh != stamps:
            with contextlib.suppress(KimiVLError):  # a folder that cannot be written: check again
                write_bytes(folder / CHECKED_FILE, json.dumps(fresh, sort_keys=True).encode())
        return cls(folder=folder, manifest=manifest)

    @classmethod
    @contextlib.contextmanager
    def to_change(
        cls, folder: Path, *, rehash: bool = False, progress: Progress = silent
    ) -> Iterator["Artifact"]:
        """Open an artifact whose manifest no other run of the toolkit changes until the end.

        The manifest is read behind the lock: one that was read before could be written back over
        what another run has put there. A folder that may not be written needs no lock, and some
        file systems that are mounted so give none.

        Raises:
            ArtifactError: as `open`.
            KimiVLError: another run writes there now.
        """
        _check_is_folder(folder)  # else the lock would make it
        is_writable = os.access(folder, os.W_OK)
        with exclusive(folder) if is_writable else contextlib.nullcontext():
            yield cls.open(folder, rehash=rehash, progress=progress)

    @property
    def model_folder(self) -> Path:
        """Config, tokenizer and template of the checkpoint."""
        return self.folder / MODEL_FOLDER

    def target(self, name: str) -> TargetRecord:
        """Return what a target runs.

        Raises:
            ArtifactError: the artifact was not built for it.
        """
        targets = self.manifest.targets
        if name not in targets:
            built = ", ".join(targets) or "none"
            cure = f"run `tool.py build {self.folder} --target {name}`"
            if not _is_target(name):
                known = ", ".join(names.TARGETS)
                cure = f"there is no such target; those that can be built are {known}"
            raise ArtifactError(
                f"{self.folder}: not built for target {name!r} (built: {built}); {cure}"
            )
        return targets[name]

    def read_checked(self, name: str) -> bytes:
        """Return a file's bytes; what is hashed is what is returned."""
        try:
            content = resolve_inside(self.folder, name).read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{self.folder / name}: cannot be read: {error.strerror}"
            ) from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise ArtifactError(f"{self.folder / name}: {_ALTERED}")
        return content


CONFIG_FILE = "config.json"
_ALTERED = (
    "does not have the SHA-256 of the manifest; it was altered or damaged, compile again into "
    "another folder"
)


def _is_target(name: str) -> bool:
    """Whether targets of that name can be built: one, or several cards as `rtx:sm89+sm120`."""
    home, colon, devices = name.partition(":")
    return all(f"{home}{colon}{device}" in names.TARGETS for device in devices.split("+"))


def _check_is_folder(folder: Path) -> None:
    if not folder.is_dir():
        state = "not a folder" if folder.exists() else "no such folder"
        raise ArtifactError(f"{folder}: {state}; expected an artifact folder")


def _check_files(folder: Path, manifest: Manifest, stamps: _Stamps, progress: Progress) -> _Stamps:
    """Check each file and return the stamps of the weights."""
    problems: list[str] = []
    fresh: _Stamps = {}
    done, total = 0, sum(record.bytes for record in manifest.files.values())
    for name, record in manifest.files.items():
        try:
            problem = _check_file(folder, name, record, stamps, fresh)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem:
            problems.append(f"{name} {problem}")
        done += record.bytes
        progress("check", done, total)
    known = {folder / name for name in manifest.files}
    strangers = [path for path in (folder / MODEL_FOLDER).glob("*") if path not in known]
    problems += [f"{MODEL_FOLDER}/{path.name} is not listed; remove it" for path in strangers]
    if f"{MODEL_FOLDER}/{CONFIG_FILE}" not in manifest.files:
        problems.append(f"{MODEL_FOLDER}/{CONFIG_FILE} is not listed")
    if problems:
        raise ArtifactError(describe_problems(str(folder / FILE_NAME), problems))
    return fresh


def _check_file(
    folder: Path, name: str, record: FileRecord, stamps: _Stamps, fresh: _Stamps
) -> str | None:
    path = folder / name
    if not path.is_file():
        return "is missing"
    status = path.stat()
    if status.st_size != record.bytes:
        return f"has {status.st_size} bytes, expected {record.bytes}"
    stamp = [status.st_size, status.st_mtime_ns]
    is_weights = path.suffix == ".bin"
    known = is_weights and stamps.get(name) == stamp
    if not known and sha256_of(path) != record.sha256:
        return _ALTERED
    if is_weights:
        fresh[name] = stamp
    return None


def _read_stamps(folder: Path) -> _Stamps:
    """Return the stamps of an earlier check, or none if there are none that can be read."""
    try:
        stamps = json.loads((folder / CHECKED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stamps if isinstance(stamps, dict) else {}
