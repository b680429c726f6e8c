"""The limits that a target was built for last: what a build leaves out stays as it was.

A build that replaces a target takes it out of the manifest before it touches its files. Until the
new one is in, its limits stand in a file beside, so that the same command leaves out the same after
a kill.
"""

import json
from dataclasses import asdict
from pathlib import Path

from runtime.artifact.fields import Fields, MalformedError, read_limits
from runtime.artifact.manifest import Manifest
from runtime.errors import ArtifactError
from runtime.files import disk_errors_named, write_bytes
from runtime.limits import Limits

from .job import STAGE, file_name


def former_limits(folder: Path, manifest: Manifest, target: str) -> Limits | None:
    """Look up what a target was built for, if it was.

    Raises:
        ArtifactError: what a stopped build noted is malformed.
    """
    if target in manifest.targets:
        return manifest.targets[target].limits
    path = _path(folder, target)
    try:
        return read_limits(Fields(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, MalformedError) as error:
        raise ArtifactError(f"{path}: not readable; remove it: {error}") from error


def note_limits(folder: Path, target: str, limits: Limits) -> None:
    """Keep the limits of a target that is about to leave the manifest."""
    write_bytes(_path(folder, target), json.dumps(asdict(limits), sort_keys=True).encode() + b"\n")


def forget_limits(folder: Path, target: str) -> None:
    """Remove the note: the target is in the manifest."""
    path = _path(folder, target)
    if path.exists():  # on a disk that is only read even removing nothing fails
        with disk_errors_named(path):
            path.unlink()


def _path(folder: Path, target: str) -> Path:
    return folder / f".{STAGE}-{file_name(target)}.limits"
