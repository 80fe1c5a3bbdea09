"""The commands that look at what a job has published, or tidy it up. Thin, as those of jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.options import (
    DateOption,
    JobFile,
    JsonOption,
    OutputUri,
    PartitionOption,
    QuietOption,
    SetOption,
    StorageOption,
    as_storage_options,
    show,
    show_report,
)


def report(
    uri: OutputUri,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: latest.")] = None,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the report of a run that is stored beside its output."""
    from pipeline.operations.outputs import report as read

    options = as_storage_options(storage_options)
    document = read(uri, run_id=run_id, partition=partition, storage_options=options)
    show_report(document, as_json=as_json, quiet=False)


def inspect(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is published: rows, parts, labels, some predictions, the quarantine."""
    from pipeline.operations.outputs import inspect as describe

    options = as_storage_options(storage_options)
    show(describe(uri, partition=partition, storage_options=options), as_json=as_json)


def verify(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove a published partition: checksums, rows in = predictions + quarantine, ids."""
    from pipeline.operations.outputs import verify as prove

    options = as_storage_options(storage_options)
    found = prove(uri, partition=partition, storage_options=options)
    show(found, as_json=as_json, quiet=quiet)


def rollback(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    to: Annotated[int | None, typer.Option("--to", help="Version number. Default: newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a replaced version of the job's partition again."""
    from pipeline.operations.maintenance import rollback as restore

    show(restore(job, to=to, date=date, overrides=set_ or ()), as_json=as_json)


def gc(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    grace_s: Annotated[float, typer.Option(help="Keep staging younger than this.")] = 86400.0,
    as_json: JsonOption = False,
) -> None:
    """Delete staged slices that no unfinished run can need any more."""
    from pipeline.operations.maintenance import gc as collect

    show(collect(job, grace_s=grace_s, date=date, overrides=set_ or ()), as_json=as_json)
