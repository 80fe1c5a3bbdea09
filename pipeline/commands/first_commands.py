"""The commands of the first minutes: a run, or a job file, without a job file. Thin, as others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import calls, show
from pipeline.core.errors import JobError
from pipeline.core.printable import printable
from pipeline.process.interrupts import reason

_INPUT = "A folder, a file or a glob."
_MODEL = "A directory, .onnx, a name, or module:function."
_TO = "Where the output goes."
Input = Annotated[str, typer.Argument(metavar="INPUT", help=_INPUT)]
Model = Annotated[str, typer.Option("--model", metavar="M", help=_MODEL)]
To = Annotated[str, typer.Option("--to", metavar="OUT", help=_TO)]


@calls("first_steps.predict:predict", shows_progress=True, starts_ray=True, goes_on="same")
def predict(
    input: Input,
    model: Model,
    to: To,
    features: options.FeaturesOption = None,
    overrides: options.SetOption = None,
    address: options.AddressOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Predict an input without a job file, which it writes itself.

    Format, columns, id and task are found out.
    """


def init(
    input_: Annotated[str | None, typer.Argument(metavar="[INPUT]", help=_INPUT)] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="M", help=_MODEL)] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="OUT", help=_TO)] = None,
    job: Annotated[str, typer.Option("--job", metavar="FILE", help="To write.")] = "job.yaml",
    features: options.FeaturesOption = None,
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write the job file that `predict` would run.

    On a terminal it asks for what is left out.
    """
    asks = not as_json and _is_on_terminal()
    input_ = _given_or_asked(input_, "argument INPUT", _INPUT, asks=asks)
    model = _given_or_asked(model, "option --model", _MODEL, asks=asks)
    to = _given_or_asked(to, "option --to", _TO, asks=asks)
    from pipeline.operations.first_steps.first_rows import Ambiguous
    from pipeline.operations.first_steps.predict import init as write

    allowed, settings = allow_import or (), [*(overrides or ())]
    while True:
        try:
            summary = write(
                input_,
                model=model,
                to=to,
                job=job,
                features=features or (),
                overrides=settings,
                allow_import=allowed,
            )
        except Ambiguous as error:
            if not asks:
                raise
            settings.append(f"{error.field}={json.dumps(_choose(error.field, error.choices))}")
        else:
            break
    show(summary, as_json=as_json)


def _is_on_terminal() -> bool:
    """Tell whether there is a person to ask: stdin and stderr are a terminal."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or none
        return False


def _given_or_asked(value: str | None, name: str, what: str, *, asks: bool) -> str:
    """Return a value that was given, or ask for it.

    Raises:
        JobError: It is missing, and there is no terminal or no answer.
    """
    if value is None and not asks:
        raise JobError(f"Missing {name}. On a terminal it would be asked for.")
    return value or _answer(f"{what}\n{name.split()[-1]}", name)


def _choose(field: str, choices: Sequence[str]) -> str:
    """Ask for one of several values of a field of the job.

    Raises:
        JobError: The input ends without an answer.
    """
    numbered = {str(number): choice for number, choice in enumerate(choices, 1)}
    lines = (f"  {number} {printable(choice)}\n" for number, choice in numbered.items())
    question = f"Which one is {field}?\n{''.join(lines)}Name or number"
    while (answer := _answer(question, field)) not in {*choices, *numbered}:
        pass
    return answer if answer in choices else numbered[answer]


def _answer(question: str, name: str) -> str:
    try:
        return str(typer.prompt(question, err=True)).strip()
    except typer.Abort:  # Ctrl-C or Ctrl-D
        if reason() is not None:
            raise KeyboardInterrupt from None
        raise JobError(f"Missing {name}: nothing was answered") from None
