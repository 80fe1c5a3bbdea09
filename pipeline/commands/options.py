"""The arguments and options that several commands share."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from typer import Argument, Context, Option

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.job.reading.dates import EVERY, ONLY


def refuse_job_file(command: str | None, uri: str) -> str:
    """Refuse a job file where an output is expected, and name the output of that job."""
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


def is_for_cluster(
    address: str | None, date: str | None, unused: Mapping[str, object]
) -> TypeGuard[str]:
    """Tell whether `status` or `stop` is about submitted jobs.

    Args:
        address: The value of --address.
        date: The value of --date.
        unused: Options that have no effect on submitted jobs, with their values.

    Raises:
        JobError: A date is given without --address, or an unused option with it.
    """
    if address is None and date is not None:
        raise JobError("--date selects a job on a cluster: give --address http://HOST:8265 as well")
    given = [name for name, value in unused.items() if value]
    if address is not None and given:
        raise JobError(
            f"{', '.join(given)}: not for submitted jobs; remove --address to read the output"
        )
    return address is not None


def _refuse_job_file(ctx: Context, uri: str) -> str:
    return refuse_job_file(ctx.info_name, uri)


def _require_format(name: str) -> str:
    """Refuse an unknown format; `process/screen` has read the option already."""
    if name not in ("text", "json"):
        raise JobError(f"--log-format {name}: write text or json")
    return name


def _inverted(value: bool) -> bool:
    """Return the argument of the operation for an option `--no-...`."""
    return not value


def _as_names(text: str | None) -> list[str] | None:
    """Read comma-separated names as a record of CSV."""
    return None if text is None else next(csv.reader([text], skipinitialspace=True), [])


def _as_storage_options(text: str) -> dict[str, Any]:
    """Read --storage-options.

    Raises:
        JobError: It is not a JSON object.
    """
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise JobError("--storage-options: write one JSON object")
    return options


JobFile = Annotated[str, Argument(metavar="JOB", help="Job file (YAML).")]
INPUT_HELP = "A folder, a file or a glob."
MODEL_HELP = "A model directory, an .onnx file, a model name, or module:function."
OUTPUT_HELP = "Root of the output."
Input = Annotated[str, Argument(metavar="INPUT", help=INPUT_HELP)]
OptionalInput = Annotated[str | None, Argument(metavar="[INPUT]", help=INPUT_HELP)]
MODEL = Option("--model", metavar="M", help=MODEL_HELP)
OUTPUT = Option("--to", metavar="OUT", help=OUTPUT_HELP)
StorageOption = Annotated[
    dict[str, Any] | None,
    Option(
        "--storage-options",
        metavar="JSON",
        help="fsspec options; prefer AWS_* variables.",
        parser=_as_storage_options,
    ),
]
OutputUri = Annotated[
    str,
    Argument(
        metavar="URI",
        help="Root of the output, or folder of a partition.",
        callback=_refuse_job_file,
    ),
]
DateOption = Annotated[
    str | None,
    Option(
        "--date",
        metavar="YYYY-MM-DD[THH]",
        help="Value of ${date}, and of ${hour}. Default: today, UTC.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field of the job; repeatable."),
]
AddressOption = Annotated[
    str | None,
    Option(
        "--address",
        metavar="HOST:PORT",
        envvar="RAY_ADDRESS",
        help="Ray cluster. Default: start a local Ray.",
    ),
]
_JOB_API: dict[str, str] = {
    "metavar": "http://HOST:8265",
    "help": "Job API of a Ray cluster, for submitted jobs.",
}
RequiredJobApi = Annotated[str, Option("--address", envvar="RAY_ADDRESS", **_JOB_API)]
JobApiOption = Annotated[str | None, Option("--address", **_JOB_API)]
"""It does not read RAY_ADDRESS: without the option, the command reads an output."""
SubmittedJob = Annotated[
    str, Argument(metavar="ID|JOB", help="Job id, or a job file (newest submission).")
]
AllowImportOption = Annotated[
    list[str] | None,
    Option(
        "--allow-import", metavar="PREFIX", help="Modules that model.factory may name; repeatable."
    ),
]
FeaturesOption = Annotated[
    str | None,
    Option(
        "--features",
        metavar="A,B,C",
        help="Feature columns, in order, for a model with unnamed inputs.",
        callback=_as_names,
    ),
]
"""Its value is a list."""
NoReuseOption = Annotated[
    bool,
    Option(
        "--no-reuse", help="Compute all rows; reuse none from earlier versions.", callback=_inverted
    ),
]
"""Its value is that of `reuse`."""
AcceptOption = Annotated[
    list[str] | None,
    Option("--accept", metavar="GATE=REASON", help="Publish even if this gate fails; repeatable."),
]
JsonOption = Annotated[
    bool, Option("--json", help="Print one JSON document as the last line of stdout.")
]
NoTryOption = Annotated[
    bool, Option("--no-try", help="Do not build the model and predict one row.", callback=_inverted)
]
"""Its value is that of `tries`."""
OkExitOption = Annotated[
    str | None,
    Option("--ok-exit", metavar="CODES", help="Treat these exit codes as success, such as 3,4."),
]
LogFormatOption = Annotated[
    str,
    Option(
        "--log-format",
        metavar="text|json",
        help="Format of stderr: text, or one JSON object per line.",
        callback=_require_format,
    ),
]
QuietOption = Annotated[bool, Option("--quiet", help="Show no progress and no tables.")]
HtmlOption = Annotated[
    Path | None, Option("--html", help="Also write the result to this file, as a page.")
]
FROM = Option("--from", metavar="YYYY-MM-DD[THH]", help="First date.")
FromOption = Annotated[str | None, FROM]
ToOption = Annotated[
    str | None,
    Option(
        "--to", metavar="YYYY-MM-DD[THH]", help="Last date, inclusive. Default for a job: now, UTC."
    ),
]
EveryOption = Annotated[
    str,
    Option("--every", metavar="|".join(EVERY), help="Interval between the partitions of a job."),
]
OnlyOption = Annotated[
    str | None,
    Option(
        "--only",
        metavar=f"[{'|'.join(ONLY)}]",
        help="Only dates in this state; separate several by commas.",
    ),
]
NewestFirstOption = Annotated[bool, Option("--newest-first", help="Begin with the last date.")]
SubmittedForOption = Annotated[
    str | None, Option("--date", metavar="YYYY-MM-DD", help="Only the submission for this date.")
]
PartitionOption = Annotated[
    str | None, Option("--partition", metavar="KEY=VALUE", help="Partition to use.")
]
