"""The commands for the weeks between the runs. Thin, as those of jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.again import prepare_end_of_dates
from pipeline.commands.options import (
    AcceptOption,
    AddressOption,
    AllowImportOption,
    FromOption,
    JobFile,
    JsonOption,
    LogFormatOption,
    OkExitOption,
    OutputUri,
    PartitionOption,
    QuietOption,
    SetOption,
    StorageOption,
    ToOption,
    as_storage_options,
    progress_on_terminal,
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


def backfill(
    job: JobFile,
    from_: Annotated[
        str, typer.Option("--from", metavar="YYYY-MM-DD", help="The first of several dates.")
    ],
    to: ToOption = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="[missing|stale|failed|refused]", help="Only such dates."),
    ] = None,
    newest_first: Annotated[
        bool, typer.Option("--newest-first", help="Begin with the last date.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    accept: AcceptOption = None,
    ok_exit: OkExitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = "text",
) -> None:
    """Run a job for many dates on one Ray; a date that fails does not stop the others."""
    with progress_on_terminal(quiet=quiet) as progress:
        progress.phase(f"reading {job}", is_logged=False)
        from pipeline.operations.backfill import backfill as run_all

        found = run_all(
            job,
            from_=from_,
            to=prepare_end_of_dates(to, ok_exit),
            only=only,
            newest_first=newest_first,
            dry_run=dry_run,
            overrides=set_ or (),
            address=address,
            allow_import=allow_import or (),
            accept=accept or (),
            progress=progress,
            owns_process=True,
        )
    show(found.to_dict() if as_json else found.shown(), as_json=as_json, quiet=quiet)
    raise typer.Exit(found.exit_code)


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
