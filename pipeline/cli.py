"""The command line. Thin: each command parses, calls one function, and prints.

Results go to stdout, talk to stderr. An error is one line and an exit code of pipeline.errors;
`--debug` adds the traceback. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import JobError, PipelineError, Stopped
from pipeline.terminal import detach_stderr

app = typer.Typer(
    name="pipeline",
    help="Offline batch inference: shards in object storage -> model actors -> Parquet, once.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="Path of the job file (YAML).")]
OutputUri = Annotated[
    str, typer.Argument(metavar="URI", help="The sink's root, or a partition's folder.")
]
DateOption = Annotated[
    str | None,
    typer.Option("--date", metavar="YYYY-MM-DD", help="Value of ${date}. Default: today, UTC."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override the job; repeatable."),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster. Default: a local Ray."),
]
AllowImportOption = Annotated[
    list[str] | None,
    typer.Option("--allow-import", metavar="PREFIX", help="Modules model.factory may name."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="The last line of stdout is one JSON document.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
PartitionOption = Annotated[
    str | None, typer.Option("--partition", metavar="KEY=VALUE", help="Which partition.")
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage-options", metavar="JSON", help="fsspec options; better: AWS_*."),
]


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, more log.")] = False,
) -> None:
    _STATE["debug"] = debug
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("pipeline").setLevel(logging.DEBUG if debug else logging.INFO)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_STATE = {"debug": False}


@app.command()
def run(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a job once: predict what is missing, check, publish, report."""
    from pipeline.progress import Progress
    from pipeline.run import run_job

    loaded = _load(job, date, set_)
    options = _options(address, allow_import)
    _report(run_job(loaded, options, Progress(quiet=quiet)), as_json=as_json, quiet=quiet)


@app.command()
def plan(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do: rows, slices, what is done already. Writes nothing."""
    from pipeline.inspect import describe_plan

    _show(describe_plan(_load(job, date, set_), _options(None, allow_import)), as_json=as_json)


@app.command()
def tune(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every way to run the job's model on a sample of its rows, and keep the figures."""
    from pipeline.tune import tune_job

    _show(tune_job(_load(job, date, set_), _options(address, allow_import)), as_json=as_json)


@app.command()
def report(
    uri: OutputUri,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: latest.")] = None,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the report of a run that is stored beside its output."""
    from pipeline.inspect import load_report

    document = load_report(uri, partition, run_id, _storage_options(storage_options))
    _report(document, as_json=as_json, quiet=False)


@app.command()
def inspect(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is published: rows, parts, labels, some predictions, the quarantine."""
    from pipeline.inspect import describe_output

    _show(describe_output(uri, partition, _storage_options(storage_options)), as_json=as_json)


@app.command()
def verify(
    uri: OutputUri,
    partition: PartitionOption = None,
    storage_options: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove a published partition: checksums, rows in = predictions + quarantine, ids."""
    from pipeline.verify import verify_output

    _show(verify_output(uri, partition, _storage_options(storage_options)), as_json=as_json)


@app.command()
def rollback(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    to: Annotated[int | None, typer.Option("--to", help="Version number. Default: newest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a replaced version of the job's partition again."""
    from pipeline.upkeep import rollback_job

    _show(rollback_job(_load(job, date, set_), to), as_json=as_json)


@app.command()
def gc(
    job: JobFile,
    date: DateOption = None,
    set_: SetOption = None,
    grace_s: Annotated[float, typer.Option(help="Keep staging younger than this.")] = 86400.0,
    as_json: JsonOption = False,
) -> None:
    """Delete staged slices that no unfinished run can need any more."""
    from pipeline.upkeep import collect_job_garbage

    _show(collect_job_garbage(_load(job, date, set_), grace_s=grace_s), as_json=as_json)


@app.command()
def submit(
    job: JobFile,
    address: Annotated[
        str, typer.Option("--address", envvar="RAY_ADDRESS", help="Job API, http://HOST:8265.")
    ],
    date: DateOption = None,
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
) -> None:
    """Run a job on a Ray cluster through its job API; ends with the job's exit code."""
    from pipeline.job_file import load_job
    from pipeline.submit import submit_job

    # A wrong job file is refused here, not on the cluster; its ${env:NAME} are the cluster's.
    load_job(job, date=_date(date), overrides=set_ or [], with_environment=False)
    write = functools.partial(typer.echo, nl=False)
    code = submit_job(job, address, _date(date), set_ or [], allow_import or [], write)
    raise typer.Exit(code)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(metavar="[job|report]", help="Which schema.")] = "job",
) -> None:
    """Print the JSON schema of the job file, or of report.json."""
    from pipeline.job import Job
    from pipeline.report import report_schema

    if what not in ("job", "report"):
        raise JobError(f"schema {what}: write job or report")
    document = Job.model_json_schema() if what == "job" else report_schema()
    typer.echo(json.dumps(document, indent=2))


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where inputs and outputs go.")] = "demo-output",
    rows: Annotated[int, typer.Option(min=20, help="How many photos.")] = 320,
    as_json: JsonOption = False,
) -> None:
    """Build real photo shards, classify them, and show everything that comes out."""
    from pipeline.demo import run_demo

    document = run_demo(Path(folder), rows, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))


def _load(path: str, date: str | None, overrides: list[str] | None) -> Any:
    from pipeline.job_file import load_job

    return load_job(path, date=_date(date), overrides=overrides or [])


def _date(text: str | None) -> dt.date:
    if text is None:
        return dt.datetime.now(dt.UTC).date()
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise JobError(f"--date {text}: write YYYY-MM-DD") from None


def _options(address: str | None, allow_import: list[str] | None) -> Any:
    from pipeline.record import RunOptions

    return RunOptions(address=address, allow_import=tuple(allow_import or ()))


def _storage_options(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise JobError("--storage-options: write one JSON object")
    return options


def _report(document: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    from rich.console import Console

    from pipeline.render import render_table

    if not quiet:
        Console(stderr=as_json).print(render_table(document))
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))


def _show(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
        return
    from rich.console import Console

    from pipeline.render import render_document

    Console().print(render_document(document))


def _stop(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = signal.Signals(signum).name
    raise Stopped(f"{name} received: finished slices are kept, run again to go on")


def main() -> None:
    """Entry point of the `pipeline` command."""
    detach_stderr()  # before logging takes hold of the stream
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    raise SystemExit(_guard(app))


def _guard(command: Callable[..., Any]) -> int:
    """Run a command; turn any error into one line and an exit code."""
    try:
        return command(standalone_mode=False) or 0
    except PipelineError as error:
        return _fail(error, error.exit_code)
    except Exception as error:  # noqa: BLE001  # the last stop: everything ends in one line
        if hasattr(error, "format_message"):  # the parser's own errors know how to show themselves
            return _fail(JobError(error.format_message()), JobError.exit_code)
        return _fail(error, PipelineError.exit_code)


def _fail(error: Exception, code: int) -> int:
    from pipeline.schema import clean_message

    if _STATE["debug"] or os.environ.get("PIPELINE_DEBUG"):
        logging.getLogger("pipeline").exception("failed", exc_info=error)
    kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    message = clean_message(kind + str(error))
    typer.echo(f"error: {message}", err=True)
    if "--json" in sys.argv:
        typer.echo(json.dumps({"status": "error", "exit_code": code, "error": message}))
    return code
