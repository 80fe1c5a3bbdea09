"""The commands for the weeks between the runs. Thin, as those of jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.options import (
    AllowImportOption,
    FromOption,
    JsonOption,
    OutputUri,
    PartitionOption,
    SetOption,
    StorageOption,
    ToOption,
    as_storage_options,
    show,
)


def status(
    sink: Annotated[str, typer.Argument(metavar="URI|JOB", help="The sink's root, or a job file.")],
    partition: PartitionOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    storage_options: StorageOption = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Text for the node exporter, for cron.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how partitions are: complete, running, refused, interrupted; of jobs: missing, stale."""
    from pipeline.operations.status import status as look

    found = look(
        sink,
        partition=partition,
        from_=from_,
        to=to,
        overrides=set_ or (),
        allow_import=allow_import or (),
        storage_options=as_storage_options(storage_options),
    )
    if prometheus:
        typer.echo(found.to_prometheus(), nl=False)
    else:
        show(found.to_dict() if as_json else found.shown(), as_json=as_json)


def stop(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the run of a partition to stop, wherever it is; it keeps what is done, ends with 6."""
    from pipeline.operations.stop import stop as ask

    options = as_storage_options(storage_options)
    show(ask(uri, partition=partition, storage_options=options), as_json=as_json)
