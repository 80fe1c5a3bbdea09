"""The group of commands: lists them by what they are for, and takes no option twice."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from typer.core import TyperGroup

from pipeline.core.errors import JobError

_MEANT = {
    **dict.fromkeys(["infer", "exec", "execute", "start", "apply"], "run"),
    **dict.fromkeys(["dry-run", "check", "validate", "explain"], "plan"),
    **dict.fromkeys(["show", "list", "ls", "info"], "inspect"),
    **dict.fromkeys(["clean", "cleanup", "prune"], "gc"),
    **dict.fromkeys(["download", "fetch"], "pull"),
}
"""What people type -> the command that does it."""
_INSTEAD = {
    **dict.fromkeys(
        ["--dry-run", "--dryrun", "--check", "--plan"],
        "; pipeline plan JOB shows what a run would do",
    ),
    **dict.fromkeys(
        ["--from", "--to"],
        "; pipeline backfill runs a job for many dates, pipeline status JOB shows them",
    ),
    "--partition": "; the partition of a job is that of --date",
}
"""Options that a command does not have -> what to add to the error."""


class CommandGroup(TyperGroup):
    """Lists commands by group; refuses what would silently win over itself."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by group, each with the first paragraph of its description."""
        for group, commands in groupby(self.commands.items(), lambda item: _group_of(item[1])):
            with formatter.section(group):
                formatter.write_dl(
                    [(name, (command.help or "").split("\n\n")[0]) for name, command in commands]
                )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name.

        Raises:
            JobError: It is another name for a command, or an option of one value is given twice.
        """
        if args and args[0] not in self.commands and (meant := _MEANT.get(args[0])):
            raise JobError(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        found = super().resolve_command(ctx, args)
        name, command, rest = found
        if command is not None:
            # What else is wrong with the arguments is said when they are parsed in earnest.
            trial = type(ctx)(command, info_name=name, parent=ctx, resilient_parsing=True)
            _refuse_repeated(command.make_parser(trial).parse_args(list(rest))[2])
        return found


def hint_of(error: BaseException) -> str:
    """Return what to add to an error of the parser; '' if it says all."""
    return _INSTEAD.get(getattr(error, "option_name", ""), "")


def _group_of(command: Any) -> str:
    return str(command.rich_help_panel)


def _refuse_repeated(order: list[Any]) -> None:
    """Refuse an option that is there twice; flags and lists may be."""
    for option, times in Counter(order).items():
        is_single = not (getattr(option, "is_flag", True) or option.multiple)
        if is_single and times > 1:
            raise JobError(f"{option.opts[0]} is given {times} times: once is right")
