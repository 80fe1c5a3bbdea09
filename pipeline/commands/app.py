"""The commands. Thin: each one parses, calls one function, and prints.

Results go to stdout, talk to stderr. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.command_group import CommandGroup
from pipeline.commands.options import (
    AcceptOption,
    AddressOption,
    AllowImportOption,
    DateOption,
    IncludeOption,
    JobFile,
    JsonOption,
    NoTryOption,
    OutputUri,
    PartitionOption,
    QuietOption,
    SetOption,
    StorageOption,
    as_date,
    as_options,
    as_storage_options,
    load,
    show,
    show_report,
    versions,
)
from pipeline.core.errors import JobError
from pipeline.core.failpoints import fail_here
from pipeline.core.screen import log_to_stderr

app = typer.Typer(
    name="pipeline",
    cls=CommandGroup,
    help="Offline batch inference: shards in object storage -> model actors -> Parquet, once.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, more log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of this, Ray and torch.")
    ] = False,
) -> None:
    log_to_stderr(logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.DEBUG if debug else logging.INFO)
    fail_here("command")
    if version:
        typer.echo(versions())
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    accept: AcceptOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a job once: predict what is missing, check, publish, report."""
    from pipeline.execution.embedded.forkserver import started_ahead
    from pipeline.report.progress import Progress

    with Progress(quiet=quiet) as progress, started_ahead(address):
        progress.phase(f"reading {job}", is_logged=False)  # before what takes a while to import
        loaded = load(job, date, set_)
        options = as_options(address, allow_import, accept)
        progress.phase(f"running {job}")
        from pipeline.run import run_job

        report = run_job(loaded, options, progress)
    show_report(report, as_json=as_json, quiet=quiet)


@app.command()
def plan(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    no_try: NoTryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a run would do, and try the model on one row. Writes nothing."""
    from pipeline.commands.plan import describe_plan

    options = as_options(None, allow_import)
    found = describe_plan(load(job, date, set_), options, tries=not no_try)
    show(found, as_json=as_json, quiet=quiet)


@app.command()
def tune(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure every way to run the job's model on a sample of its rows, and keep the figures."""
    from pipeline.commands.tune import tune_job

    found = tune_job(load(job, date, set_), as_options(address, allow_import))
    show(found, as_json=as_json, quiet=quiet)


@app.command()
def golden(
    job: JobFile,
    out: Annotated[str, typer.Option("--out", metavar="URI", help="The .parquet file to write.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows.")] = 32,
    date: DateOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write golden rows: some of the job's rows with what eager fp32 predicts for them."""
    from pipeline.commands.golden import make_golden

    options = as_options(None, allow_import)
    show(make_golden(load(job, date, set_), options, rows, out), as_json=as_json)


@app.command()
def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Also what it needs.")] = None,
    date: DateOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    no_try: NoTryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look at all that a run will need, and say what is wrong and what would be right."""
    from pipeline.commands.doctor import examine

    loaded = None if job is None else load(job, date, set_)
    found, code = examine(loaded, as_options(address, allow_import), tries=not no_try)
    show(found, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def report(
    uri: OutputUri,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: latest.")] = None,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the report of a run that is stored beside its output."""
    from pipeline.report.history import load_report

    document = load_report(uri, partition, run_id, as_storage_options(storage_options))
    show_report(document, as_json=as_json, quiet=False)


@app.command()
def inspect(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is published: rows, parts, labels, some predictions, the quarantine."""
    from pipeline.commit.describe import describe_output

    show(describe_output(uri, partition, as_storage_options(storage_options)), as_json=as_json)


@app.command()
def verify(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove a published partition: checksums, rows in = predictions + quarantine, ids."""
    from pipeline.commit.verify import verify_output

    found = verify_output(uri, partition, as_storage_options(storage_options))
    show(found, as_json=as_json, quiet=quiet)


@app.command()
def retry(
    job: JobFile,
    reason: Annotated[
        list[str] | None,
        typer.Option("--reason", metavar="REASON", help="Only these rows; repeatable."),
    ] = None,
    date: DateOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    accept: AcceptOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run only the quarantined rows again, and merge what now succeeds into the partition."""
    from pipeline.report.progress import Progress

    with Progress(quiet=quiet) as progress:
        progress.phase(f"reading {job}", is_logged=False)
        options = as_options(address, allow_import, accept)
        loaded = load(job, date, set_)
        progress.phase(f"retrying {job}")
        from pipeline.commands.retry import retry_job

        done = retry_job(loaded, options, reason or [], progress)
    show_report(done, as_json=as_json, quiet=quiet)


@app.command()
def rollback(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    to: Annotated[int | None, typer.Option("--to", help="Version number. Default: newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a replaced version of the job's partition again."""
    from pipeline.commands.maintenance import rollback_job

    show(rollback_job(load(job, date, set_, runs=False), to), as_json=as_json)


@app.command()
def gc(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    grace_s: Annotated[float, typer.Option(help="Keep staging younger than this.")] = 86400.0,
    as_json: JsonOption = False,
) -> None:
    """Delete staged slices that no unfinished run can need any more."""
    from pipeline.commands.maintenance import collect_job_garbage

    loaded = load(job, date, set_, runs=False)
    show(collect_job_garbage(loaded, grace_s=grace_s), as_json=as_json)


@app.command()
def pull(
    uri: Annotated[str, typer.Argument(metavar="hf://ORG/NAME[@REVISION]", help="What to copy.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A folder, on any store.")],
    include: IncludeOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a model directory from a hub to a store: data only, at one commit, checked."""
    from pipeline.commands.pull import pull as pull_files

    options = as_storage_options(storage_options)
    show(pull_files(uri, destination, include or [], options), as_json=as_json)


@app.command()
def submit(
    job: JobFile,
    address: Annotated[
        str, typer.Option("--address", envvar="RAY_ADDRESS", help="Job API, http://HOST:8265.")
    ],
    date: DateOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    accept: AcceptOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a job on a Ray cluster through its job API; ends with the job's exit code."""
    from pipeline.commands.submit import submit_and_follow

    lists = (set_ or [], allow_import or [], accept or [])
    code = submit_and_follow(job, address, date, *lists, as_json=as_json, quiet=quiet)
    raise typer.Exit(code)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(metavar="[job|report]", help="Which schema.")] = "job",
) -> None:
    """Print the JSON schema of the job file, or of report.json."""
    from pipeline.job.job import Job
    from pipeline.report.document import report_schema

    if what not in ("job", "report"):
        raise JobError(f"schema {what}: write job or report")
    document = Job.model_json_schema() if what == "job" else report_schema()
    typer.echo(json.dumps(document, indent=2))


@app.command()
def chaos(
    job: JobFile,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same faults.")] = 1,
    rows: Annotated[int, typer.Option("--rows", min=20, help="How many rows.")] = 200,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch folder.")] = False,
    date: DateOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the job over a copy of some rows, kill it and spoil its store, and count what is lost."""
    from pipeline.commands.chaos.chaos import Chaos, run_chaos

    lists = (tuple(set_ or ()), tuple(allow_import or ()))
    asked = Chaos(load(job, date, set_), job, as_date(date), *lists, rows, seed, keep)
    found, code = run_chaos(asked)
    show(found, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where inputs and outputs go.")] = "demo-output",
    rows: Annotated[int, typer.Option(min=20, help="How many rows.")] = 320,
    as_json: JsonOption = False,
) -> None:
    """Build real photo shards, classify them, and show everything that comes out."""
    from pipeline.commands.demo import run_demo

    document = run_demo(Path(folder), rows, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
