"""The commands for jobs on a cluster, and for what runs one elsewhere. Thin, as those of jobs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.commands.again import prepare_end, prepare_end_of_dates, prepare_ok_exit
from pipeline.commands.options import (
    AcceptOption,
    AllowImportOption,
    DateOption,
    EveryOption,
    FromOption,
    JobFile,
    JsonOption,
    MaxActiveOption,
    NewestFirstOption,
    OkExitOption,
    OnlyOption,
    QuietOption,
    SetOption,
    SubmittedForOption,
    ToOption,
    show,
)

if TYPE_CHECKING:
    from pipeline.operations.clusters.submit import ClusterJob

Api = Annotated[
    str, typer.Option("--address", envvar="RAY_ADDRESS", help="Job API, http://HOST:8265.")
]
Target = Annotated[
    str, typer.Argument(metavar="ID|JOB", help="Of a submitted job; a job file: its newest.")
]


def submit(
    job: JobFile,
    address: Api,
    date: DateOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    every: EveryOption = "day",
    only: OnlyOption = None,
    newest_first: NewestFirstOption = False,
    max_active: MaxActiveOption = 1,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    accept: AcceptOption = None,
    code: Annotated[
        str | None, typer.Option("--code", metavar="PATH", help="Send this folder, or wheel, too.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    start_timeout_s: Annotated[
        float, typer.Option("--start-timeout-s", min=1, help="How long it may be pending.")
    ] = 120,
    ok_exit: OkExitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a job, or a backfill, on a Ray cluster; ends with its exit code. Twice is once."""
    from pipeline.operations.clusters.submit import submit as hand_over

    if from_ is None:
        date = prepare_end(date, ok_exit)
    else:
        to = prepare_end_of_dates(to, ok_exit, every)
    done = hand_over(
        job,
        address,
        write=_to_terminal(as_json=as_json, quiet=quiet),
        date=date,
        from_=from_,
        to=to,
        every=every,
        only=only,
        newest_first=newest_first,
        max_active=max_active,
        overrides=set_ or (),
        allow_import=allow_import or (),
        accept=accept or (),
        code=code,
        detach=detach,
        start_timeout_s=start_timeout_s,
        needs_document=as_json,
        quiet=quiet,
    )
    _end(done, as_json=as_json, quiet=quiet)


def attach(
    target: Target,
    address: Api,
    date: SubmittedForOption = None,
    ok_exit: OkExitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Follow a submitted job to its end, and end with its exit code; it is left alone."""
    from pipeline.operations.clusters.submitted import attach as follow

    prepare_ok_exit(ok_exit)
    write = _to_terminal(as_json=as_json, quiet=quiet)
    done = follow(target, address, write=write, date=date, needs_document=as_json)
    _end(done, as_json=as_json, quiet=quiet)


def logs(
    target: Target,
    address: Api,
    date: SubmittedForOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """Show the log of a submitted job."""
    from pipeline.operations.clusters.submitted import logs as read

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
        from pipeline.operations.weeks.backfill import Backfill
        from pipeline.operations.weeks.one_date import DateRun

        dates = tuple(DateRun(**each) for each in document["dates"])
        show(Backfill(dates).shown(), as_json=False, quiet=quiet)
    raise typer.Exit(done.exit_code or 0)


def manifest(
    target: Annotated[
        str, typer.Argument(metavar="kubernetes", help="What is to run the job: kubernetes.")
    ],
    job: JobFile,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="dockerfile, job, cron-job, indexed-job, ray-job or ray-cron-job. Default: "
            "cron-job with --cron, indexed-job with --from, otherwise ray-job.",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Of the pods: what the Dockerfile builds.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar='"0 2 * * *"', help="When it starts.")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", metavar="ZONE", help="Of --cron. Default: UTC.")
    ] = None,
    date: DateOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A Secret for the environment; repeatable."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Pods beside Ray's head, or dates at a time.")
    ] = 2,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Of a pod that computes.")] = 8,
    memory_gib: Annotated[
        int, typer.Option("--memory-gib", min=2, help="Of a pod that computes.")
    ] = 32,
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="Kueue's LocalQueue.")
    ] = None,
    submission: Annotated[
        Literal["sidecar", "http"], typer.Option("--submission", help="Of a RayJob.")
    ] = "sidecar",
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what runs a job on Kubernetes: Dockerfile, RayJob, CronJob; talks to no cluster."""
    from pipeline.operations.clusters.manifest import manifest as describe

    found = describe(
        target,
        job,
        kind=kind,
        image=image,
        cron=cron,
        time_zone=time_zone,
        date=date,
        from_=from_,
        to=to,
        secrets=secret or (),
        workers=workers,
        cpus=cpus,
        memory_gib=memory_gib,
        queue=queue,
        submission=submission,
        allow_import=allow_import or (),
    )
    typer.echo(json.dumps(found.to_dict()) if as_json else found.text, nl=as_json)
