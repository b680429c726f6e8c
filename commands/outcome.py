"""How a command ends: 0, 1 for a named error in one line, 2 for a wrong call, 130 for Ctrl-C."""

import errno
from collections.abc import Sequence

import typer

from runtime.errors import KimiVLError

from . import output

INTERRUPTED = 130


def status_of(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; only a bug leaves a traceback."""
    output.prepare()
    try:
        app(arguments)
    except SystemExit as end:  # typer ends every call so, good ones too
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001  a bug is raised again
        status = _status_of_error(error)
    if status == INTERRUPTED:
        output.note("interrupted")
    return status


def _status_of_error(error: Exception) -> int:
    """Print an error of the user's world in one line; raise a bug again."""
    if _is_from_ctrl_c(error):
        return INTERRUPTED
    if isinstance(error, KimiVLError):
        output.error(str(error))
    elif isinstance(error, MemoryError):
        output.error(f"out of memory ({error or 'no details'}); see `tool.py doctor`")
    elif isinstance(error, OSError):
        output.error(_describe_os_error(error))
    else:
        raise error
    return 1


def _is_from_ctrl_c(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: native modules turn it into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _describe_os_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}no space left on the disk; free some or choose another folder"
    return f"{place}{reason}"
