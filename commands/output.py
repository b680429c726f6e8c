"""The only place that prints: results on stdout, everything else on stderr.

Terminals get tables and colours, pipes the same words without them. What a model or a file name
brings along is never taken for markup, nor for the control codes of a terminal.
"""

import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDE = 10_000
"""Columns where no terminal sets a width: nothing is wrapped or cut."""


def prepare() -> None:
    """Make the streams fit to be written to, whatever the process was started with.

    What an encoding cannot write is shown as escapes. A stderr that is closed takes what nobody
    reads, and its number, which a file of an artifact would get otherwise, warnings in between.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  open to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_result_closed() -> bool:
    """Whether the process was started without a stdout."""
    return sys.stdout is None


def drop_unwritten() -> None:
    """Let go of what stdout does not take: at its end Python would try once more, and say so."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_result_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def is_note_terminal() -> bool:
    """Whether a person reads stderr."""
    return sys.stderr.isatty()


def note(text: str) -> None:
    """Say something beside the result, on stderr."""
    _say(text, "")


def error(text: str) -> None:
    """Say what went wrong, in one line on stderr."""
    _say(f"error: {' '.join(text.split())}", "bold red")


def stream(text: str, *, is_dim: bool = False) -> None:
    """Write a piece of the result to stdout at once, without a line end."""
    if not is_result_terminal():
        sys.stdout.write(text)
    else:
        style = "dim" if is_dim else None
        _console(sys.stdout).out(_visible(text), end="", style=style, highlight=False)
    sys.stdout.flush()


def json_value(value: object) -> None:
    """Write a result as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def facts(values: Mapping[str, object], *, as_json: bool) -> None:
    """Write a result of named values.

    Args:
        values: JSON values; a name that ends in `_bytes` is a size.
        as_json: write them for machines, exactly.
    """
    if as_json:
        json_value(values)
        return
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), _shown(name, value))
        for name, value in values.items()
        if value is not None
    ]
    table((), rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows of cells under column names; without names, the first column is bold."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=bool(columns), pad_edge=False, header_style="bold")
    width = len(columns) or max(map(len, rows), default=1)
    for index in range(width):
        name = columns[index] if columns else ""
        is_label = not columns and index == 0
        grid.add_column(Text(name), style="bold" if is_label else None, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_visible(cell)) for cell in row))
    console = _console(sys.stdout)
    for line in console.render_lines(grid, pad=False):
        text = Text("").join(Text(part.text, part.style or "") for part in line)
        text.rstrip()
        console.print(text)
    sys.stdout.flush()


def heading(text: str) -> None:
    """Write a line that begins a part of the result."""
    _console(sys.stdout).print(f"\n{_visible(text)}", style="bold")


def ask(prompt: str) -> str:
    """Read a line from stdin; the prompt is for people only.

    Raises:
        EOFError: there are no more lines.
    """
    return input(prompt if sys.stdin.isatty() and is_result_terminal() else "")


def size(count: int) -> str:
    """Write a number of bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers in short: 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _shown(name: str, value: Any) -> str:  # noqa: ANN401  any JSON value
    if name.endswith("_bytes"):
        return size(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return ranges(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _say(text: str, style: str) -> None:
    if not is_note_terminal():
        sys.stderr.write(f"{_visible(text)}\n")
    else:
        _console(sys.stderr).print(_visible(text), style=style)
    sys.stderr.flush()


def _visible(text: str) -> str:
    """Replace control codes, which could move the cursor or hide text, by a visible sign."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _console(file: TextIO) -> "Console":
    from rich.console import Console

    width = None if file.isatty() else _WIDE
    return Console(
        file=file, width=width, markup=False, highlight=False, emoji=False, soft_wrap=True
    )
