"""How a command ends: with a status that docs/usage.md lists, and at most one line of error."""

import errno
import signal
from collections.abc import Sequence

import typer

from runtime.errors import KimiVLError

from . import output

INTERRUPTED, TERMINATED = 130, 143
RESUMABLE = ("compile", "export", "calibrate", "build")
"""Commands that go on where they were when they are called again."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: ends whatever Ctrl-C ends, in the same way."""


def raise_on_sigterm() -> None:
    """End the process by an exception at the first SIGTERM, and at once at a second."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise TerminatedError

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # whoever started it did not ignore it
        signal.signal(signal.SIGTERM, end)


def status_of(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; only a bug leaves a traceback."""
    output.prepare()
    if output.is_result_closed():
        output.error(
            "stdout is closed, so that no result can be written; open it, or use /dev/null"
        )
        return 1
    try:
        app(arguments)
    except SystemExit as end:  # typer ends every call so, good ones too
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status == INTERRUPTED:
            status = _status_of_signal(end) or status
    except KeyboardInterrupt as error:
        status = _status_of_signal(error) or INTERRUPTED
    except Exception as error:  # noqa: BLE001  a bug is raised again
        status = _status_of_error(error)
    if status in (INTERRUPTED, TERMINATED):
        word = "interrupted" if status == INTERRUPTED else "terminated"
        goes_on = arguments and arguments[0] in RESUMABLE
        output.note(f"{word}; the same command goes on" if goes_on else word)
    return status


def _status_of_error(error: Exception) -> int:
    """Print an error of the user's world in one line; raise a bug again."""
    ended_by = _status_of_signal(error)
    if ended_by is not None:
        return ended_by
    if isinstance(error, KimiVLError):
        output.error(str(error))
    elif isinstance(error, MemoryError):
        output.error(f"out of memory ({error or 'no details'}); see `tool.py doctor`")
    elif isinstance(error, OSError):
        output.error(_describe_os_error(error))
        output.drop_unwritten()
    else:
        raise error
    return 1


def _status_of_signal(error: BaseException | None) -> int | None:
    """Give the status of the signal behind an error, if any: others turn it into errors of theirs.

    Native modules make an ImportError of it, typer a SystemExit.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return TERMINATED if isinstance(error, TerminatedError) else INTERRUPTED


def _describe_os_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}no space left on the disk; free some or choose another folder"
    return f"{place}{reason}"
