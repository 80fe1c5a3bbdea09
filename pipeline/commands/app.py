"""The command line: all commands by name. Results go to stdout, talk to stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.commands.cluster_commands import attach, logs, submit
from pipeline.commands.command_group import CommandGroup
from pipeline.commands.first_commands import init, predict
from pipeline.commands.job_commands import doctor, golden, plan, retry, run, tune
from pipeline.commands.output_commands import diff, gc, inspect, pull, report, rollback, verify
from pipeline.commands.partition_commands import backfill, status, stop
from pipeline.commands.results import versions
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
