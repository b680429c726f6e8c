"""Files that are either whole or absent: written to a temporary neighbour, then renamed.

Does not know: what the files hold. Disk errors become one-line errors that name path and cure.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from .errors import CapacityError, KimiVLError

TEMPORARY_SUFFIX = ".part"
_BLOCK_BYTES = 1 << 22


def _ignore(event: str) -> None:
    """Do nothing at an event."""


on_event: Callable[[str], None] = _ignore
"""Called before and after each rename; tests replace it by one that kills the process."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path` for writing; rename it when the block ends well.

    Raises:
        CapacityError: the disk is full; nothing is left behind.
        KimiVLError: the folder cannot be written.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        on_event(f"before {path.name}")
        temporary.replace(path)
        on_event(f"after {path.name}")
    except OSError as error:
        temporary.unlink(missing_ok=True) if _is_reachable(temporary) else None
        _raise_disk_error(path, error)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file as a whole."""
    with replacing(path) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """Hash a file block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def resolve_inside(folder: Path, name: str) -> Path:
    """Return `folder / name`, which must stay inside the folder even through links.

    Raises:
        KimiVLError: the name is absolute, has `..`, or a link leads outside.
    """
    relative = Path(name)
    path = folder / relative
    is_plain = bool(name) and not relative.is_absolute() and ".." not in relative.parts
    if not is_plain or not path.resolve().is_relative_to(folder.resolve()):
        raise KimiVLError(f"{folder}: the path {name!r} leaves the folder; refused")
    return path


def _is_reachable(path: Path) -> bool:
    return os.access(path.parent, os.W_OK)


def _raise_disk_error(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise CapacityError(
            f"{path}: no space left on the disk; free some or choose another output folder"
        ) from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise KimiVLError(
            f"{path}: no permission to write; choose a folder that you own"
        ) from error
    raise KimiVLError(f"{path}: cannot be written: {error.strerror or error}") from error
