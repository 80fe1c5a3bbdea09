"""The commands that run a job, or try one out. Thin: each parses, calls one function, and prints.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.again import prepare_end
from pipeline.commands.results import progress_on_terminal, show, show_report


def run(
    job: options.JobFile,
    date: options.DateOption = None,
    set_: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    ok_exit: options.OkExitOption = None,
    no_reuse: options.NoReuseOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Run a job once: predict what is missing, check, publish, report."""
    from pipeline.execution.embedded.forkserver import started_ahead

    with progress_on_terminal(quiet=quiet) as progress, started_ahead(address):
        progress.phase(f"reading {job}", is_logged=False)  # before what takes a while to import
        from pipeline.operations.run import run as run_once

        report = run_once(
            job,
            date=prepare_end(date, ok_exit),
            overrides=set_ or (),
            address=address,
            allow_import=allow_import or (),
            accept=accept or (),
            reuse=not no_reuse,
            progress=progress,
            owns_process=True,
        )
    show_report(report, as_json=as_json, quiet=quiet)


def plan(
    job: options.JobFile,
    date: options.DateOption = None,
    set_: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    no_try: options.NoTryOption = False,
    no_reuse: options.NoReuseOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Show what a run would do, and try the model on one row.

    It writes nothing.
    """
    from pipeline.operations.plan import plan as describe

    found = describe(
        job,
        date=date,
        overrides=set_ or (),
        address=address,
        allow_import=allow_import or (),
        tries=not no_try,
        reuse=not no_reuse,
    )
    show(found if as_json else found.shown(), as_json=as_json, quiet=quiet)


def tune(
    job: options.JobFile,
    date: options.DateOption = None,
    set_: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Measure every way to run the model of a job on some of its rows.

    The figures are kept for the runs to come.
    """
    from pipeline.operations.tune import tune as measure

    with progress_on_terminal(quiet=quiet) as progress:
        found = measure(
            job,
            date=date,
            overrides=set_ or (),
            address=address,
            allow_import=allow_import or (),
            progress=progress,
        )
    show(found, as_json=as_json, quiet=quiet)


def golden(
    job: options.JobFile,
    out: Annotated[str, typer.Option("--out", metavar="URI", help="The file to write.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 32,
    date: options.DateOption = None,
    set_: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write golden rows, with which each run is compared.

    They are rows of the job, with what eager fp32 predicts for them.
    """
    from pipeline.operations.golden import golden as write

    allowed = allow_import or ()
    found = write(job, out, rows=rows, date=date, overrides=set_ or (), allow_import=allowed)
    show(found, as_json=as_json)


def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Also what it needs.")] = None,
    date: options.DateOption = None,
    set_: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    no_try: options.NoTryOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Check all that a run will need.

    It says what is wrong and what would be right.
    """
    from pipeline.operations.doctor import doctor as examine

    found, code = examine(
        job,
        date=date,
        overrides=set_ or (),
        address=address,
        allow_import=allow_import or (),
        tries=not no_try,
    )
    show(found, as_json=as_json)
    raise typer.Exit(code)


def retry(
    job: options.JobFile,
    reason: Annotated[
        list[str] | None,
        typer.Option("--reason", metavar="REASON", help="Only these rows; repeatable."),
    ] = None,
    date: options.DateOption = None,
    set_: options.SetOption = None,
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
    with progress_on_terminal(quiet=quiet) as progress:
        progress.phase(f"reading {job}", is_logged=False)  # before what takes a while to import
        from pipeline.operations.retry import retry as run_again

        done = run_again(
            job,
            reasons=reason or (),
            date=prepare_end(date, ok_exit),
            overrides=set_ or (),
            address=address,
            allow_import=allow_import or (),
            accept=accept or (),
            progress=progress,
            owns_process=True,
        )
    show_report(done, as_json=as_json, quiet=quiet)
