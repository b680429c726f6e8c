"""Build the library of custom ops: `make ops`, or `python -m kimivl.ops.build` beside the wheel.

Needs a C++ compiler (g++ or clang++) and nothing else. All instruction sets are in one library,
which chooses at run time, so that it can be built on another machine of the same kind.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import KimiVLError, UnsupportedError
from ..files import sha256_of, write_bytes
from .library import LIBRARY, SOURCES, STAMP, Stamp, hash_sources

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden")
_COMPILERS = ("g++", "clang++")


def build_library() -> Path:
    """Compile all sources and put the library beside this module.

    Raises:
        UnsupportedError: no compiler, or not a processor that the sources are for.
        KimiVLError: the compiler refused a source; or the folder cannot be written.
    """
    if platform.machine() != "x86_64" or sys.platform != "linux":
        where = f"{sys.platform} on {platform.machine()}"
        raise UnsupportedError(f"custom ops: x86-64 with Linux is needed, this is {where}")
    compiler = _find_compiler()
    sources = hash_sources()
    with tempfile.TemporaryDirectory() as folder:
        objects = _compile_all(compiler, Path(folder))
        library = Path(folder) / LIBRARY.name
        _call([compiler, "-shared", *map(str, objects), "-o", str(library)])
        write_bytes(LIBRARY, library.read_bytes())
    stamp = Stamp(sources=sources, library=sha256_of(LIBRARY))
    write_bytes(STAMP, json.dumps(stamp._asdict(), indent=2).encode() + b"\n")
    return LIBRARY


def _find_compiler() -> str:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise UnsupportedError(f"custom ops: none of {', '.join(names)} found; install a C++ compiler")


def _compile_all(compiler: str, folder: Path) -> list[Path]:
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    commands = [
        [compiler, *_FLAGS, "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_call, commands))
    return objects


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [
            "no reason given"
        ]
        raise KimiVLError(f"custom ops: {command[0]}: {errors[0]}")


def main() -> int:
    """Build and name the library; a user's error and Ctrl-C end in one line."""
    try:
        sys.stdout.write(f"{build_library()}\n")
    except KimiVLError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was there before is as it was\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
