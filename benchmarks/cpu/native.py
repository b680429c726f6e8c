"""Programs in C and C++, compiled when they are first needed or their sources are newer.

Does not know: what the programs do.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import KimiVLError, UnsupportedError

LINES_SHOWN = 5


def run_step(command: Sequence[str]) -> str:
    """Run a command and return its stdout; its ways of failing become one error.

    Raises:
        UnsupportedError: the program is not installed.
        KimiVLError: it failed; the last lines of what it wrote are in the message.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnsupportedError(f"{command[0]} is needed for this benchmark: install it") from error
    if done.returncode:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-LINES_SHOWN:])
        raise KimiVLError(f"{' '.join(command[:6])} ... exited with {done.returncode}: {last}")
    return done.stdout


def run_in_background(command: Sequence[str]) -> str:
    """Run a long command as `run_step` does, behind everything else on the machine."""
    return run_step(["nice", "-n", "10", *command])


def compile_program(
    target: Path, compiler: str, source: Path, options: Sequence[str], *, libraries: Sequence[Path]
) -> Path:
    """Compile one source file, for this machine alone, unless the program is up to date.

    Args:
        target: the program, which appears when it is complete.
        compiler: of the C family of gcc's command line.
        source: the file.
        options: for the compiler, before the source.
        libraries: static libraries, after the source.
    """
    inputs = [source, *libraries]
    if target.exists() and all(_changed_ns(path) <= _changed_ns(target) for path in inputs):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    run_step(
        [compiler, "-march=native", "-fopenmp", *options, str(source)]
        + [str(library) for library in libraries]
        + ["-o", str(temporary)]
    )
    temporary.replace(target)
    return target


def _changed_ns(path: Path) -> int:
    return path.stat().st_mtime_ns
