"""Write docs/cli.md, the page of the command line, from the help texts: `make docs`.

The page is plain text at a fixed width, so that it does not depend on terminal or colours.
"""

import sys
from collections.abc import Iterator
from typing import Any

import typer

PROGRAM = "python tool.py"
WIDTH = 80
INTRODUCTION = """\
# Command line

What `--help` prints, written by `make docs`; a test keeps the two equal.
Results go to stdout and everything else to stderr. The exit status is 0, or 1 for an error that
the message names, 2 for a wrong call, 130 for Ctrl-C, 143 for SIGTERM.
"""


def cli_page(app: typer.Typer) -> str:
    """Describe every command of the app as Markdown, parents before their sub-commands."""
    command = typer.main.get_command(app)
    context = command.context_class(
        command,
        info_name=PROGRAM,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        color=False,
        **command.context_settings,
    )
    return "\n".join([INTRODUCTION, *_sections(command, context)])


def _sections(command: Any, context: Any) -> Iterator[str]:  # noqa: ANN401  typer hides its types
    """Yield the section of one command, then those of its sub-commands in order."""
    command.rich_markup_mode = None  # plain text instead of boxes as wide as the terminal
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    yield "\n".join([f"## `{context.command_path}`", "", "```text", *lines, "```", ""])
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _sections(child, child.context_class(child, info_name=name, parent=context))


if __name__ == "__main__":
    from tool import app

    sys.stdout.write(cli_page(app))
