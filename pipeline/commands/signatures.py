"""The commands that only call the operation of their name: each is its arguments and help."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from pipeline.commands import options
from pipeline.commands.operation import calls_operation


@calls_operation(shows_progress=True, starts_ray=True, can_resume=True)
def predict(
    input: options.Input,
    model: Annotated[str, options.MODEL],
    to: Annotated[str, options.OUTPUT],
    features: options.FeaturesOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Predict an input without a job file, and write the job file.

    The format, columns, row id and task are detected.
    """


@calls_operation()
def doctor(
    job: Annotated[str | None, Argument(metavar="[JOB]", help="Check this job as well.")] = None,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    tries: options.NoTryOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Check everything that a run needs.

    Reports problems and how to fix them.
    """


@calls_operation(shows_progress=True, starts_ray=True, can_resume=True)
def run(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    ok_exit: options.OkExitOption = None,
    reuse: options.NoReuseOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Run a job once: predict missing rows, check, publish, report."""


@calls_operation()
def plan(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    tries: options.NoTryOption = False,
    reuse: options.NoReuseOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Show what a run would do, and try the model on one row.

    Writes nothing.
    """


@calls_operation(shows_progress=True, can_resume=True)
def retry(
    job: options.JobFile,
    reasons: Annotated[
        list[str] | None,
        Option("--reason", metavar="REASON", help="Only rows with this reason; repeatable."),
    ] = None,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    accept: options.AcceptOption = None,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Run only the quarantined rows again.

    Rows that now succeed are merged into the partition.
    """


@calls_operation(shows_progress=True)
def tune(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    log_format: options.LogFormatOption = "text",
) -> None:
    """Measure every way to run the model on a sample of the rows.

    Later runs use the results.
    """


@calls_operation()
def golden(
    job: options.JobFile,
    out: Annotated[str, Option("--out", metavar="URI", help="File to write (.parquet).")],
    rows: Annotated[int, Option("--rows", min=1, help="Number of rows.")] = 32,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write golden rows: rows with known predictions.

    They are rows of the job with their eager fp32 predictions; `gates.golden` compares every run
    with them.
    """


@calls_operation(shows_progress=True, can_resume=True)
def backfill(
    job: options.JobFile,
    from_: Annotated[str, options.FROM],
    to: options.ToOption = None,
    every: options.EveryOption = "day",
    only: options.OnlyOption = None,
    newest_first: options.NewestFirstOption = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show what would be done, and do nothing.")
    ] = False,
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


@calls_operation(can_resume=True)
def submit(
    job: options.JobFile,
    address: options.RequiredJobApi,
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
        str | None,
        Option("--code", metavar="PATH", help="Also send this folder of modules, or wheel."),
    ] = None,
    detach: Annotated[bool, Option("--detach", help="Return once the job has started.")] = False,
    start_timeout_s: Annotated[
        float, Option("--start-timeout-s", min=1, help="Seconds that the job may be pending.")
    ] = 120,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Run a job, or a backfill, on a Ray cluster.

    Ends with the exit code of the job. Submitting twice runs it once.
    """


@calls_operation()
def attach(
    target: options.SubmittedJob,
    address: options.RequiredJobApi,
    date: options.SubmittedForOption = None,
    ok_exit: options.OkExitOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Follow a submitted job to its end, and end with its exit code.

    Interrupting this command does not stop the job.
    """


@calls_operation()
def logs(
    target: options.SubmittedJob,
    address: options.RequiredJobApi,
    date: options.SubmittedForOption = None,
    follow: Annotated[
        bool, Option("--follow", "-f", help="Keep following until the job ends.")
    ] = False,
) -> None:
    """Show the log of a submitted job."""


@calls_operation()
def inspect(
    uri: options.OutputUri,
    partition: options.PartitionOption = None,
    html: options.HtmlOption = None,
    samples: Annotated[int, Option(min=0, help="Number of least certain rows on the page.")] = 8,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show what is published: rows, labels, predictions, quarantine."""


@calls_operation()
def report(
    uri: options.OutputUri,
    run_id: Annotated[
        str | None, Argument(metavar="[RUN]", help="Run id. Default: the latest run.")
    ] = None,
    partition: options.PartitionOption = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the report of a run, which is stored beside its output."""


@calls_operation()
def verify(
    uri: options.OutputUri,
    partition: options.PartitionOption = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Verify published data: checksums, row counts, row ids.

    Every input row must be predicted or quarantined, exactly once.
    """


@calls_operation()
def rollback(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    to: Annotated[
        int | None, Option("--to", help="Version number. Default: the newest replaced one.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Publish a replaced version of the job's partition again."""


@calls_operation()
def gc(
    job: options.JobFile,
    date: options.DateOption = None,
    all_partitions: Annotated[
        bool, Option("--all", help="Clean all partitions of the output.")
    ] = False,
    overrides: options.SetOption = None,
    grace_s: Annotated[
        float, Option(help="Keep staged files younger than this, in seconds.")
    ] = 86400.0,
    as_json: options.JsonOption = False,
) -> None:
    """Delete staged slices that no unfinished run can need."""


@calls_operation()
def pull(
    uri: Annotated[str, Argument(metavar="hf://ORG/NAME[@REVISION]", help="Repository to copy.")],
    destination: Annotated[str, Argument(metavar="DEST", help="Folder, on any store.")],
    include: Annotated[
        list[str] | None,
        Option("--include", metavar="PATTERN", help="Only these files; repeatable."),
    ] = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Copy a model directory from a hub to a store, at one commit.

    Copies data files only, never code, and checks the digest of each.
    """
