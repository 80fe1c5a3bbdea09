"""The commands by group, in the order of the help, and the options of `pipeline` itself."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.commands.diff import diff
from pipeline.commands.init import init
from pipeline.commands.operation import versions
from pipeline.commands.signatures import (
    attach,
    backfill,
    doctor,
    gc,
    golden,
    inspect,
    logs,
    plan,
    predict,
    pull,
    report,
    retry,
    rollback,
    run,
    submit,
    tune,
    verify,
)
from pipeline.commands.status import status
from pipeline.commands.stop import stop
from pipeline.core.errors import JobError
from pipeline.process.failpoints import failpoint_quiet
from pipeline.process.screen import log_to_stderr


def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of this package, Ray and torch.")
    ] = False,
) -> None:
    log_to_stderr(logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.DEBUG if debug else logging.INFO)
    failpoint_quiet("command")
    if version:
        typer.echo(versions())
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def schema(
    what: Annotated[str, typer.Argument(metavar="[job|report]", help="Schema to print.")] = "job",
) -> None:
    """Print the JSON schema of the job file, or of report.json."""
    from pipeline.operations.schema import schema as schema_of

    typer.echo(json.dumps(schema_of(what), indent=2))


_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "First steps": (predict, init, doctor, schema),
    "Runs": (run, plan, retry, tune, golden),
    "Partitions": (backfill, status, stop),
    "Clusters": (submit, attach, logs),
    "Outputs": (inspect, report, diff, verify, rollback, gc),
    "Models": (pull,),
}

_INSTEAD = {
    **dict.fromkeys(
        ["--dry-run", "--dryrun", "--check", "--plan"],
        "; pipeline plan JOB shows what a run would do",
    ),
    **dict.fromkeys(
        ["--from", "--to"],
        "; pipeline backfill runs a job for many dates, and pipeline status JOB shows their state",
    ),
    "--partition": "; a job selects its partition by --date",
}
"""Options that a command does not have -> a hint for the error message."""


class CommandGroup(TyperGroup):
    """List commands by group; refuse an option of one value that is given twice."""

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
            JobError: An option of one value is given twice.
        """
        resolved = super().resolve_command(ctx, args)
        name, command, rest = resolved
        if command is not None:
            # Other mistakes in the arguments are reported when they are parsed for real.
            trial = type(ctx)(command, info_name=name, parent=ctx, resilient_parsing=True)
            _refuse_repeated(command.make_parser(trial).parse_args(list(rest))[2])
        return resolved


def hint_of(error: BaseException) -> str:
    """Return a hint for an error of the parser; '' if there is none."""
    return _INSTEAD.get(getattr(error, "option_name", ""), "")


def _group_of(command: Any) -> str:
    return str(command.rich_help_panel)


def _refuse_repeated(order: list[Any]) -> None:
    """Refuse an option that is given twice, unless it is a flag or a list."""
    for option, times in Counter(order).items():
        is_single = not (getattr(option, "is_flag", True) or option.multiple)
        if is_single and times > 1:
            raise JobError(f"{option.opts[0]} is given {times} times; give it once")


def _all_commands() -> typer.Typer:
    made = typer.Typer(
        name="pipeline",
        cls=CommandGroup,
        help="Offline batch inference on Ray: input rows become Parquet predictions, once.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback(invoke_without_command=True)(_common)
    for group, commands in _GROUPS.items():
        for command in commands:
            made.command(rich_help_panel=group)(command)
    return made


app = _all_commands()
