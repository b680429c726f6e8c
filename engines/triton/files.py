"""A folder of files written as a whole: beside its place first, then renamed.

Files are copied and not linked: onnx-ir, which builds and verifies the artifact that they belong
to, refuses weights with more than one name.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from runtime.errors import CapacityError, KimiVLError, describe_problems
from runtime.files import (
    TEMPORARY_SUFFIX,
    announced,
    disk_errors_named,
    exclusive,
    sha256_of,
    write_bytes,
)
from runtime.progress import Progress, silent

Files = dict[str, bytes | Path]
"""What a folder holds: relative path to bytes, or to the file that is copied."""
_CACHES = "__pycache__"
"""Left by whoever runs the Python files of a folder."""


def write_folder(
    folder: Path,
    files: Files,
    *,
    ignored: frozenset[str] = frozenset(),
    progress: Progress = silent,
) -> None:
    """Write a folder; one that holds exactly these files already is left alone.

    Args:
        folder: absent, empty, or the result of an earlier run.
        files: all of them.
        ignored: names of files that others may have added.
        progress: told in bytes.

    Raises:
        KimiVLError: the folder holds something else, or cannot be replaced or written.
        CapacityError: the disk is full.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_same(folder, files, ignored, _is_equal)
        return
    _check_place(folder)
    part = folder.with_name(folder.name + TEMPORARY_SUFFIX)
    with exclusive(part):
        total, done = sum(map(_size, files.values())), 0
        _check_room(part, files)
        for name, content in files.items():
            _write(part / name, content)
            done += _size(content)
            progress("write", done, total)
        _check_same(part, files, frozenset(), _is_copied)
        with disk_errors_named(folder), announced(folder.name):
            part.rename(folder)


def _check_place(folder: Path) -> None:
    """Refuse what a new folder cannot be renamed onto, before anything is copied."""
    if os.path.ismount(folder) or folder.is_symlink():
        raise KimiVLError(f"{folder}: is a mount point or no folder; choose one inside")
    if folder == Path.cwd():
        raise KimiVLError(f"{folder}: you are in it, and it would be replaced; give another folder")


def _check_same(
    folder: Path,
    files: Files,
    ignored: frozenset[str],
    is_same: Callable[[Path, bytes | Path], bool],
) -> None:
    if not folder.is_dir():
        raise KimiVLError(f"{folder}: is a file; choose another folder")
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ignored and path.parent.name != _CACHES
    }
    problems = [f"{name} is not ours" for name in sorted(found - files.keys())]
    problems += [f"{name} is missing" for name in sorted(files.keys() - found)]
    problems += [
        f"{name} differs"
        for name in sorted(found & files.keys())
        if not is_same(folder / name, files[name])
    ]
    if problems:
        raise KimiVLError(
            describe_problems(str(folder), problems, shown=3)
            + "; nothing was changed, choose another folder or remove this one"
        )


def _is_equal(path: Path, content: bytes | Path) -> bool:
    if isinstance(content, bytes):
        return path.read_bytes() == content
    has_its_size = path.stat().st_size == content.stat().st_size
    return has_its_size and sha256_of(path) == sha256_of(content)


def _is_copied(path: Path, content: bytes | Path) -> bool:
    """Tell by size and time, which suffices for what this code wrote."""
    if isinstance(content, bytes):
        return path.read_bytes() == content
    there, here = path.stat(), content.stat()
    return (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns)


def _check_room(folder: Path, files: Files) -> None:
    """Refuse to begin what the disk has no room for; what is there already needs none."""
    needed = sum(
        _size(content)
        for name, content in files.items()
        if not ((folder / name).is_file() and _is_copied(folder / name, content))
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CapacityError(
            f"{folder}: {needed} bytes are needed and {free} are free; free some, choose another "
            "folder, or leave the artifact where it is (--artifact-at)"
        )


def _write(path: Path, content: bytes | Path) -> None:
    if isinstance(content, bytes):
        write_bytes(path, content)
    elif not (path.is_file() and _is_copied(path, content)):
        _copy(path, content)


def _copy(path: Path, source: Path) -> None:
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with disk_errors_named(path), announced(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, temporary)  # with its time, by which it is known again
        temporary.replace(path)


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
