"""Files that are either whole or absent: written to a temporary neighbour, then renamed.

Does not know: what the files hold. Disk errors become one-line errors that name path and cure.
"""

import errno
import fcntl
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
"""Called before and after each change on disk; tests replace it by one that kills the process."""


@contextmanager
def announced(change: str) -> Iterator[None]:
    """Tell `on_event` before and after a change; as a decorator, around every call."""
    on_event(f"before {change}")
    yield
    on_event(f"after {change}")


@contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Turn what the system says about writing `path` into one line with the cure.

    Raises:
        CapacityError: the disk is full, or a limit on the size of files is reached.
        KimiVLError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        _raise_disk_error(path, error)


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
        with announced(path.name):
            temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if _is_reachable(temporary) else None
        _raise_disk_error(path, error)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other runs of the toolkit from writing to a folder; a killed run lets go of it.

    Raises:
        KimiVLError: another run writes there now, or the folder cannot be made.
    """
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KimiVLError(
                f"{folder}: another run is writing here; wait for it or choose another folder"
            ) from error
        except OSError as error:
            raise KimiVLError(
                f"{folder}: this file system gives no locks ({error.strerror}), so that two runs "
                "could write at once; choose a folder on another one"
            ) from error
        yield
    finally:
        os.close(descriptor)


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
    is_plain = bool(relative.parts) and not relative.is_absolute() and ".." not in relative.parts
    try:
        is_inside = is_plain and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise KimiVLError(f"{folder}: the path {name!r} cannot be used: {error}") from error
    if not is_inside:
        raise KimiVLError(f"{folder}: the path {name!r} leaves the folder; refused")
    return path


def refuse_inside(output: Path, source: Path) -> None:
    """Refuse to write into the folder that is read, or below it.

    Raises:
        KimiVLError: `output` lies in `source`, also through links.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
        raise KimiVLError(
            f"{output}: lies in {source}, which it is made from and which must stay as it is; "
            "choose a folder outside"
        )


def _is_reachable(path: Path) -> bool:
    return os.access(path.parent, os.W_OK)


def _raise_disk_error(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise CapacityError(
            f"{path}: no space left on the disk; free some or choose another output folder"
        ) from error
    if error.errno == errno.EFBIG:
        raise CapacityError(
            f"{path}: larger than files may be here; raise the limit (ulimit -f) or choose "
            "another file system"
        ) from error
    if error.errno == errno.EROFS:
        raise KimiVLError(
            f"{path}: lies on a file system that is read-only here; choose a folder on another"
        ) from error
    if error.errno in (errno.EACCES, errno.EPERM):
        raise KimiVLError(
            f"{path}: no permission to write; choose a folder that you own"
        ) from error
    raise KimiVLError(f"{path}: cannot be written: {error.strerror or error}") from error
