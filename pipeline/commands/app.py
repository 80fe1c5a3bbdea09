"""The command line: all commands by name. Results go to stdout, talk to stderr."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.commands.cluster_commands import attach, logs, submit
from pipeline.commands.first_commands import init, predict
from pipeline.commands.job_commands import doctor, golden, plan, retry, run, tune
from pipeline.commands.operation import versions
from pipeline.commands.output_commands import diff, gc, inspect, pull, report, rollback, verify
from pipeline.commands.partition_commands import backfill, status, stop
from pipeline.core.errors import JobError
from pipeline.process.failpoints import failpoint_quiet
from pipeline.process.screen import log_to_stderr


def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, more log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of this, Ray and torch.")
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
    what: Annotated[str, typer.Argument(metavar="[job|report]", help="Which schema.")] = "job",
) -> None:
    """Print the JSON schema of the job file, or of report.json."""
    from pipeline.job.job import Job
    from pipeline.report.document import report_schema

    if what not in ("job", "report"):
        raise JobError(f"schema {what}: write job or report")
    document = Job.model_json_schema() if what == "job" else report_schema()
    typer.echo(json.dumps(document, indent=2))


_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "First steps": (predict, init, doctor, schema),
    "Runs": (run, plan, retry, tune, golden),
    "Partitions": (backfill, status, stop),
    "Clusters": (submit, attach, logs),
    "Outputs": (inspect, report, diff, verify, rollback, gc),
    "Models": (pull,),
}
"""As the help lists them."""


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
            JobError: An option of one value is given twice.
        """
        resolved = super().resolve_command(ctx, args)
        name, command, rest = resolved
        if command is not None:
            # What else is wrong with the arguments is said when they are parsed in earnest.
            trial = type(ctx)(command, info_name=name, parent=ctx, resilient_parsing=True)
            _refuse_repeated(command.make_parser(trial).parse_args(list(rest))[2])
        return resolved


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


def _all_commands() -> typer.Typer:
    made = typer.Typer(
        name="pipeline",
        cls=CommandGroup,
        help="Offline batch inference: shards in object storage -> model actors -> Parquet, once.",
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
