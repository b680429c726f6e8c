"""Progress bars on stderr, for people only: nothing at all when stderr is not a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.progress import Progress, silent

from . import output


@contextmanager
def showing() -> Iterator[Progress]:
    """Show one bar for each stage that reports, until the block ends."""
    if not output.is_note_terminal():
        yield silent
        return
    from rich import progress as bars
    from rich.console import Console

    with bars.Progress(
        bars.SpinnerColumn(finished_text="✓"),
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True, markup=False),
    ) as display:
        tasks: dict[str, bars.TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield report


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something goes on whose length is not known."""
    if not output.is_note_terminal():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, markup=False).status(text):
        yield
