"""A group of commands with one that is meant where none is named: `bench ARTIFACT`."""

from typing import Any

from typer.core import TyperGroup


class DefaultGroup(TyperGroup):
    """Takes the first command where the first word is none; `-h` is the group's own."""

    @property
    def default_command(self) -> str:
        """Name the command that need not be named."""
        return next(iter(self.commands))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  typer hides it
        """Put the command's name before words that do not begin with one."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)
