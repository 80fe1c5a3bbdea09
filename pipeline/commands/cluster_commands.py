"""The commands for jobs on a cluster. Thin, as those of jobs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import options
from pipeline.commands.again import (
    goes_on_with_dates,
    prepare_end,
    prepare_ok_exit,
)
from pipeline.commands.operation import show

if TYPE_CHECKING:
    from pipeline.execution.submit.job import ClusterJob

Api = Annotated[
    str, typer.Option("--address", envvar="RAY_ADDRESS", help="Job API, http://HOST:8265.")
]
Target = Annotated[
    str, typer.Argument(metavar="ID|JOB", help="Of a submitted job; a job file: its newest.")
]


def submit(
    job: options.JobFile,
    address: Api,
    date: options.DateOption = None,
    from_: options.FromOption = None,
    to: options.ToOption = None,
    every: options.EveryOption = "day",
    only: options.OnlyOption = None,
    newest_first: options.NewestFirstOption = False,
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    code: Annotated[
        str | None, typer.Option("--code", metavar="PATH", help="Send this folder, or wheel, too.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    start_timeout_s: Annotated[
        float, typer.Option("--start-timeout-s", min=1, help="How long it may be pending.")
    ] = 120,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Run a job, or a backfill, on a Ray cluster.

    It ends with the exit code of the job. Submitting twice runs it once.
    """
    from pipeline.execution.submit.submission import Submission
    from pipeline.operations.clusters import submit as hand_over

    if from_ is None:
        date = prepare_end(date, ok_exit)
    else:
        to = prepare_end(to, ok_exit, "--to", every)
    done = hand_over(
        Submission(
            job,
            date,
            from_,
            to,
            every,
            only,
            newest_first,
            overrides=overrides or (),
            allow_import=allow_import or (),
            accept=accept or (),
            code=code,
            quiet=quiet,
        ),
        address,
        write=_to_terminal(as_json=as_json, quiet=quiet),
        detach=detach,
        start_timeout_s=start_timeout_s,
        needs_document=as_json,
    )
    if from_ is not None:
        goes_on_with_dates()
    _end(done, as_json=as_json, quiet=quiet)


def attach(
    target: Target,
    address: Api,
    date: options.SubmittedForOption = None,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Follow a submitted job to its end, and end with its exit code.

    The job is left alone.
    """
    from pipeline.operations.clusters import attach as follow

    prepare_ok_exit(ok_exit)
    write = _to_terminal(as_json=as_json, quiet=quiet)
    done = follow(target, address, write=write, date=date, needs_document=as_json)
    _end(done, as_json=as_json, quiet=quiet)


def logs(
    target: Target,
    address: Api,
    date: options.SubmittedForOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """Show the log of a submitted job."""
    from pipeline.operations.clusters import logs as read

    read(target, address, write=functools.partial(typer.echo, nl=False), date=date, follow=follow)


def _to_terminal(*, as_json: bool, quiet: bool) -> Callable[[str], Any]:
    """Return where the log of a job goes: not among results that a program reads."""
    return functools.partial(typer.echo, nl=False, err=as_json or quiet)


def _end(done: ClusterJob, *, as_json: bool, quiet: bool) -> None:
    """Show what is known of a job, and end with its exit code."""
    document = json.loads(done.document) if done.document else None
    if done.exit_code is None:
        show({"job_id": done.job_id, "state": "running"}, as_json=as_json, quiet=quiet)
    elif document and as_json:
        typer.echo(done.document)
    elif document and "dates" in document:
        from pipeline.operations.backfill import Backfill, DateRun

        dates = tuple(DateRun(**date_run) for date_run in document["dates"])
        show(Backfill(dates), as_json=False, quiet=quiet)
    raise typer.Exit(done.exit_code or 0)
