"""The command `stop`: of a run, by its output, or of a submitted job."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import show


def stop(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI|ID",
            help="Root of the output, folder of a partition, or a submitted job's id.",
        ),
    ],
    partition: options.PartitionOption = None,
    storage_options: options.StorageOption = None,
    address: options.JobApiOption = None,
    date: options.SubmittedForOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Ask a run, or a submitted job, to stop.

    The run may be on any machine. It keeps finished slices, and ends with exit code 6.
    """
    unused = {"--partition": partition, "--storage-options": storage_options}
    if options.is_for_cluster(address, date, unused):
        from pipeline.operations.stop import stop_submitted

        show(stop_submitted(uri, address, date), as_json=as_json)
        return
    from pipeline.operations.stop import stop as ask_to_stop

    options.refuse_job_file("stop", uri)
    show(ask_to_stop(uri, partition=partition, storage_options=storage_options), as_json=as_json)
