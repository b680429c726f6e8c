"""Ways to alter an artifact, and to make its manifest agree afterwards."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from runtime.artifact.manifest import FILE_NAME


def flip_a_byte(path: Path, *, position: int | None = None) -> None:
    """Change one byte, in the middle if no position is given."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 0x10
    path.write_bytes(content)


def flip_a_byte_and_restore_the_time(path: Path) -> None:
    """Change one byte so that size and time of change stay the same."""
    before = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_fields(folder: Path) -> dict[str, Any]:
    """Read the manifest as what it is on disk."""
    fields: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
    return fields


def write_fields(folder: Path, fields: object) -> None:
    """Write a manifest that may be nonsense."""
    (folder / FILE_NAME).write_text(json.dumps(fields))


def put_in_place(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and let the manifest vouch for it."""
    (folder / name).write_bytes(content)
    fields = read_fields(folder)
    fields["files"][name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_fields(folder, fields)
