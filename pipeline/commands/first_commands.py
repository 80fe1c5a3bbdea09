"""The commands of the first minutes: a run, or a job file, without a job file. Thin, as others."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.again import prepare_end_of_same
from pipeline.commands.options import (
    AddressOption,
    AllowImportOption,
    JsonOption,
    QuietOption,
    SetOption,
    progress_on_terminal,
    show,
    show_report,
)

Input = Annotated[str, typer.Argument(metavar="INPUT", help="A folder, a file or a glob.")]
Model = Annotated[
    str,
    typer.Option("--model", metavar="M", help="A directory, .onnx, a name, or module:function."),
]
To = Annotated[str, typer.Option("--to", metavar="OUT", help="Where the output goes.")]


def predict(
    input_: Input,
    model: Model,
    to: To,
    set_: SetOption = None,
    address: AddressOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Predict an input without a job file: format, columns, id and task are found out."""
    from pipeline.execution.embedded.forkserver import started_ahead

    prepare_end_of_same()
    with progress_on_terminal(quiet=quiet) as progress, started_ahead(address):
        progress.phase(f"looking at {input_}", is_logged=False)
        from pipeline.operations.predict import predict as run_once

        report = run_once(
            input_,
            model=model,
            to=to,
            overrides=set_ or (),
            address=address,
            allow_import=allow_import or (),
            progress=progress,
            owns_process=True,
        )
    show_report(report, as_json=as_json, quiet=quiet)


def init(
    input_: Input,
    model: Model,
    to: To,
    job: Annotated[str, typer.Option("--job", metavar="FILE", help="To write.")] = "job.yaml",
    set_: SetOption = None,
    allow_import: AllowImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the job file that `predict` would run, with a reason behind each line."""
    from pipeline.operations.init import init as write

    allowed = allow_import or ()
    found = write(input_, model=model, to=to, job=job, overrides=set_ or (), allow_import=allowed)
    show(found, as_json=as_json)
