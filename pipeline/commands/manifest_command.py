"""The command that prints what runs a job elsewhere. Thin, as those of jobs."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from pipeline.commands.options import (
    AllowImportOption,
    DateOption,
    FromOption,
    JobFile,
    JsonOption,
    ToOption,
)


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
