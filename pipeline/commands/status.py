"""The command `status`: of an output, of a job, or of submitted jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import show
from pipeline.core.errors import JobError


def status(
    sink: Annotated[
        str | None,
        typer.Argument(
            metavar="URI|JOB|ID", help="Root of the output, a job file, or a submitted job's id."
        ),
    ] = None,
    partition: options.PartitionOption = None,
    from_: options.FromOption = None,
    to: options.ToOption = None,
    every: options.EveryOption = "day",
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    storage_options: options.StorageOption = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print metrics for the node exporter.")
    ] = False,
    address: options.JobApiOption = None,
    date: options.SubmittedForOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the state of each partition, or of submitted jobs.

    A partition is complete, running, refused, interrupted or failed. Given a job, this also shows
    which partitions are missing, and which are stale and why.
    """
    unused = {
        **{"--partition": partition, "--from": from_, "--to": to, "--every": every != "day"},
        **{"--set": overrides, "--allow-import": allow_import, "--prometheus": prometheus},
        "--storage-options": storage_options,
    }
    if options.is_for_cluster(address, date, unused):
        from pipeline.operations.status import status_of_submitted

        show({"jobs": status_of_submitted(sink, address, date)}, as_json=as_json)
        return
    if sink is None:
        raise JobError(
            "status: give the URI of an output, a job file, or --address for jobs on a cluster"
        )
    if prometheus and as_json:
        raise JobError("status: give --prometheus or --json, not both")
    from pipeline.operations.status import status as survey

    overview = survey(
        sink,
        partition=partition,
        from_=from_,
        to=to,
        every=every,
        overrides=overrides or (),
        allow_import=allow_import or (),
        storage_options=storage_options,
    )
    if prometheus:
        typer.echo(overview.to_prometheus(), nl=False)
    else:
        show(overview, as_json=as_json)
