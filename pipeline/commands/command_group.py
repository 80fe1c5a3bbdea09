"""The group of commands: helps in whole sentences, and takes no option twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperGroup

from pipeline.core.errors import JobError


class CommandGroup(TyperGroup):
    """Lists commands with their whole description; refuses what would silently win over itself."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands; the parser's own cuts what is longer than a line."""
        rows = [
            (name, (command.help or "").split("\n\n")[0]) for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name.

        Raises:
            JobError: An option that has one value is given twice.
        """
        found = super().resolve_command(ctx, args)
        name, command, rest = found
        if command is not None:
            # What else is wrong with the arguments is said when they are parsed in earnest.
            trial = type(ctx)(command, info_name=name, parent=ctx, resilient_parsing=True)
            _refuse_repeated(command.make_parser(trial).parse_args(list(rest))[2])
        return found


def _refuse_repeated(order: list[Any]) -> None:
    """Refuse an option that is there twice; flags and lists may be."""
    for option, times in Counter(order).items():
        is_single = not (getattr(option, "is_flag", True) or option.multiple)
        if is_single and times > 1:
            raise JobError(f"{option.opts[0]} is given {times} times: once is right")
