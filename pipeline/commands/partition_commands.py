"""The commands over many partitions. Thin, as those of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeGuard

import typer

from pipeline.commands import options
from pipeline.commands.operation import calls, show
from pipeline.core.errors import JobError

ClusterOption = Annotated[
    str | None, typer.Option("--address", help="Of submitted jobs: the job API, http://HOST:8265.")
]


def status(
    sink: Annotated[
        str | None,
        typer.Argument(metavar="URI|JOB|ID", help="The sink's root, a job file, or an id."),
    ] = None,
    partition: options.PartitionOption = None,
    from_: options.FromOption = None,
    to: options.ToOption = None,
    every: options.EveryOption = "day",
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    storage_options: options.StorageOption = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Text for the node exporter, for cron.")
    ] = False,
    address: ClusterOption = None,
    date: options.SubmittedForOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show how partitions are: complete, running, refused, interrupted.

    Of a job also which are missing, and which are stale and why.
    """
    unread = {
        **{"--partition": partition, "--from": from_, "--to": to, "--every": every != "day"},
        **{"--set": overrides, "--allow-import": allow_import, "--prometheus": prometheus},
        "--storage-options": storage_options,
    }
    if _is_on_cluster(address, date, unread):
        from pipeline.operations.clusters import status_of_submitted

        jobs = status_of_submitted(sink, address, date)
        show({"jobs": jobs}, as_json=as_json)
        return
    if sink is None:
        raise JobError(
            "status: give an output's URI, a job file, or --address for a cluster's jobs"
        )
    from pipeline.operations.partitions import status as look

    if prometheus and as_json:
        raise JobError("status: give --prometheus or --json, not both")
    overview = look(
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


@calls("backfill:backfill", shows_progress=True, goes_on="dates")
def backfill(
    job: options.JobFile,
    from_: Annotated[
        str, typer.Option("--from", metavar="YYYY-MM-DD[THH]", help="The first of several dates.")
    ],
    to: options.ToOption = None,
    every: options.EveryOption = "day",
    only: options.OnlyOption = None,
    newest_first: options.NewestFirstOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Run a job for many dates, on one Ray.

    A date that fails does not stop the others.
    """


def stop(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI|ID", help="The sink's root, a partition's folder, or an id; see --address."
        ),
    ],
    partition: options.PartitionOption = None,
    storage_options: options.StorageOption = None,
    address: ClusterOption = None,
    date: options.SubmittedForOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Ask a run, or a submitted job, to stop.

    Wherever it is. It keeps what is done, and ends with exit code 6.
    """
    unread = {"--partition": partition, "--storage-options": storage_options}
    if _is_on_cluster(address, date, unread):
        from pipeline.operations.clusters import stop_submitted

        show(stop_submitted(uri, address, date), as_json=as_json)
        return
    from pipeline.operations.partitions import stop as ask

    options.refuse_job_file("stop", uri)
    show(ask(uri, partition=partition, storage_options=storage_options), as_json=as_json)


def _is_on_cluster(
    address: str | None, date: str | None, unread: Mapping[str, object]
) -> TypeGuard[str]:
    """Tell whether submitted jobs are meant.

    Args:
        unread: Options that say nothing of a submitted job, with their values.

    Raises:
        JobError: A date is given without the cluster, or such an option with it.
    """
    if address is None and date is not None:
        raise JobError("--date is that of a job on a cluster: give --address http://HOST:8265")
    given = [name for name, value in unread.items() if value]
    if address is not None and given:
        raise JobError(
            f"{', '.join(given)}: not for submitted jobs; leave out --address to read the output"
        )
    return address is not None
