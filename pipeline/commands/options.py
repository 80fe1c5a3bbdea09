"""The arguments and options that several commands share."""

from __future__ import annotations

import csv
import json
import os
from typing import Annotated, Any

import typer

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="Path of the job file (YAML).")]


def refuse_job_file(command: str | None, uri: str) -> str:
    """Refuse a job file where the output belongs, and say where its output is."""
    if not uri.endswith((".yaml", ".yml")) or not os.path.isfile(uri):
        return uri
    from pipeline.job.reading.yaml_reader import read_yaml

    sink = read_yaml(uri).value.get("sink")
    output = sink.get("uri") if isinstance(sink, dict) else None
    where = "give its sink.uri"
    if isinstance(output, str):
        shown = clean_message(output)
        where = f"its output is {shown}: pipeline {command} {shown}"
    raise JobError(f"{uri} is a job file; {where}")


def _refuse_job_file(ctx: typer.Context, uri: str) -> str:
    return refuse_job_file(ctx.info_name, uri)


def _require_format(name: str) -> str:
    """Refuse what is no format; `process/screen` has read before which one it is."""
    if name not in ("text", "json"):
        raise JobError(f"--log-format {name}: write text or json")
    return name


def _inverted(value: bool) -> bool:
    """Return what an operation is told where its command has `--no-...`."""
    return not value


def _as_names(text: str | None) -> list[str] | None:
    """Read names with commas between them, as a record of CSV."""
    return None if text is None else next(csv.reader([text], skipinitialspace=True), [])


def _as_storage_options(text: str) -> dict[str, Any]:
    """Read --storage-options.

    Raises:
        JobError: It is no JSON object.
    """
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise JobError("--storage-options: write one JSON object")
    return options


StorageOption = Annotated[
    dict[str, Any] | None,
    typer.Option(
        "--storage-options",
        metavar="JSON",
        help="fsspec options; better: AWS_*.",
        parser=_as_storage_options,
    ),
]
OutputUri = Annotated[
    str,
    typer.Argument(
        metavar="URI", help="The sink's root, or a partition's folder.", callback=_refuse_job_file
    ),
]
DateOption = Annotated[
    str | None,
    typer.Option(
        "--date", metavar="YYYY-MM-DD[THH]", help="${date} (and ${hour}). Default: today, UTC."
    ),
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
FeaturesOption = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="A,B,C",
        help="Columns of a model of unnamed numbers, in its order.",
        callback=_as_names,
    ),
]
"""Its value is a list."""
NoReuseOption = Annotated[
    bool,
    typer.Option(
        "--no-reuse",
        help="Carry nothing over from earlier versions; compute all rows.",
        callback=_inverted,
    ),
]
"""Its value is that of `reuse`."""
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--accept", metavar="GATE=REASON", help="Publish though that gate fails; repeatable."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="The last line of stdout is one JSON document.")
]
NoTryOption = Annotated[
    bool,
    typer.Option(
        "--no-try", help="Do not build the model and predict one row.", callback=_inverted
    ),
]
"""Its value is that of `tries`."""
OkExitOption = Annotated[
    str | None,
    typer.Option("--ok-exit", metavar="CODES", help="Exit 0 in place of these, as in 3,4."),
]
LogFormatOption = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="text|json",
        help="What stderr has: lines, or one JSON object a line.",
        callback=_require_format,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="YYYY-MM-DD[THH]", help="The first of several dates."),
]
ToOption = Annotated[
    str | None,
    typer.Option("--to", metavar="YYYY-MM-DD[THH]", help="The last of them. Of a job: now, UTC."),
]
EveryOption = Annotated[
    str,
    typer.Option("--every", metavar="day|hour", help="Of a job: a partition a day, or an hour."),
]
OnlyOption = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="[missing|stale|failed|refused]",
        help="Only such dates; several with commas.",
    ),
]
NewestFirstOption = Annotated[
    bool, typer.Option("--newest-first", help="Begin with the last date.")
]
SubmittedForOption = Annotated[
    str | None,
    typer.Option("--date", metavar="YYYY-MM-DD", help="Of a job on a cluster: that for this date."),
]
PartitionOption = Annotated[
    str | None, typer.Option("--partition", metavar="KEY=VALUE", help="Which partition.")
]
