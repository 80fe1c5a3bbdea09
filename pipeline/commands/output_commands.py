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
    load,
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
    from pipeline.report.history import load_report

    found = load_report(uri, partition, run_id, as_storage_options(storage_options))
    show_report(found, as_json=as_json, quiet=False)


def inspect(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is published: rows, parts, labels, some predictions, the quarantine."""
    from pipeline.commit.published.describe import describe_output

    show(describe_output(uri, partition, as_storage_options(storage_options)), as_json=as_json)


def verify(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove a published partition: checksums, rows in = predictions + quarantine, ids."""
    from pipeline.commit.published.verify import verify_output

    found = verify_output(uri, partition, as_storage_options(storage_options))
    show(found, as_json=as_json, quiet=quiet)


def rollback(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    to: Annotated[int | None, typer.Option("--to", help="Version number. Default: newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a replaced version of the job's partition again."""
    from pipeline.operations.maintenance import rollback_job

    show(rollback_job(load(job, date, set_, runs=False), to), as_json=as_json)


def gc(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    grace_s: Annotated[float, typer.Option(help="Keep staging younger than this.")] = 86400.0,
    as_json: JsonOption = False,
) -> None:
    """Delete staged slices that no unfinished run can need any more."""
    from pipeline.operations.maintenance import collect_job_garbage

    loaded = load(job, date, set_, runs=False)
    show(collect_job_garbage(loaded, grace_s=grace_s), as_json=as_json)
