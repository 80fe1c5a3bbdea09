"""The commands that run a job, or try one out: each calls its operation."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import calls


@calls("run:run", shows_progress=True, starts_ray=True, goes_on="date")
def run(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    ok_exit: options.OkExitOption = None,
    reuse: options.NoReuseOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Run a job once: predict what is missing, check, publish, report."""


@calls("plan:plan")
def plan(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    tries: options.NoTryOption = False,
    reuse: options.NoReuseOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Show what a run would do, and try the model on one row.

    It writes nothing.
    """


@calls("tune:tune", shows_progress=True)
def tune(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Measure every way to run the model of a job on some of its rows.

    The figures are kept for the runs to come.
    """


@calls("golden:golden")
def golden(
    job: options.JobFile,
    out: Annotated[str, typer.Option("--out", metavar="URI", help="The file to write.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 32,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write golden rows, with which each run is compared.

    They are rows of the job, with what eager fp32 predicts for them.
    """


@calls("doctor:doctor")
def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Also what it needs.")] = None,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    tries: options.NoTryOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Check all that a run will need.

    It says what is wrong and what would be right.
    """


@calls("run:retry", shows_progress=True, goes_on="date")
def retry(
    job: options.JobFile,
    reasons: Annotated[
        list[str] | None,
        typer.Option("--reason", metavar="REASON", help="Only these rows; repeatable."),
    ] = None,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Run only the quarantined rows again.

    What now succeeds is merged into the partition.
    """
