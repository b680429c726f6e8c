"""Find the library of custom ops, and refuse one that is not what was built from these sources."""

import ctypes
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from ..errors import UnsupportedError
from ..files import sha256_of

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "src"
LIBRARY = FOLDER / "libkimivl_ops.so"
STAMP = FOLDER / "libkimivl_ops.json"
SWITCH = "KIMIVL_OPS"
"""Environment variable: `off` runs the bodies in stock ops though the library is there."""


class Stamp(NamedTuple):
    """What the library was built from, and what it is; SHA-256."""

    sources: str
    library: str


def find_library() -> Path | None:
    """Return the library that sessions should load, or None if there is none.

    Raises:
        UnsupportedError: it was altered, or built from other sources than those beside it.
    """
    if os.environ.get(SWITCH) == "off" or not LIBRARY.exists():
        return None
    stamp = _read_stamp()
    if stamp is None or stamp.library != sha256_of(LIBRARY):
        raise UnsupportedError(f"{LIBRARY}: not what was built here; {_cure()}")
    if stamp.sources != hash_sources():
        raise UnsupportedError(f"{LIBRARY}: built from other sources; {_cure()}")
    return LIBRARY


def configure(library: Path, *, num_threads: int, pack_weights: bool) -> None:
    """Say how kernels work from now on; both hold for the whole process.

    Args:
        library: from `find_library`.
        num_threads: that share the work of a kernel.
        pack_weights: whether sessions that are made from now on copy their weights into memory of
            large pages; otherwise weights are read where the file is mapped.
    """
    loaded = ctypes.CDLL(str(library))
    loaded.kimivl_use_threads(num_threads)
    loaded.kimivl_pack_weights(int(pack_weights))


def instruction_set(library: Path) -> str:
    """Name the instructions that the kernels use here: `amx`, `avx512`, `avx2` or `plain`."""
    name = ctypes.CDLL(str(library)).kimivl_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())


def hash_sources() -> str:
    """Hash all sources, names included."""
    total = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def _read_stamp() -> Stamp | None:
    try:
        values = json.loads(STAMP.read_text())
        return Stamp(sources=str(values["sources"]), library=str(values["library"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cure() -> str:
    module = f"{__package__}.build"
    return f"build it again with `python -m {module}`, or set {SWITCH}=off to run without"
