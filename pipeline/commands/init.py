"""The command `init`: on a terminal it asks for missing arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import show
from pipeline.core.errors import JobError
from pipeline.core.printable import printable
from pipeline.process.interrupts import reason


def init(
    input_: options.OptionalInput = None,
    model: Annotated[str | None, options.MODEL] = None,
    to: Annotated[str | None, options.OUTPUT] = None,
    job: Annotated[
        str, typer.Option("--job", metavar="FILE", help="Job file to write.")
    ] = "job.yaml",
    features: options.FeaturesOption = None,
    overrides: options.SetOption = None,
    allow_import: options.AllowImportOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write the job file that `predict` would run.

    On a terminal it asks for missing arguments.
    """
    asks = not as_json and _is_interactive()
    input_ = _given_or_asked(input_, "argument INPUT", options.INPUT_HELP, asks=asks)
    model = _given_or_asked(model, "option --model", options.MODEL_HELP, asks=asks)
    to = _given_or_asked(to, "option --to", options.OUTPUT_HELP, asks=asks)
    from pipeline.operations.draft_input import Ambiguous
    from pipeline.operations.init import init as write_job

    allowed, settings = allow_import or (), [*(overrides or ())]
    while True:
        try:
            summary = write_job(
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


def _is_interactive() -> bool:
    """Tell whether stdin and stderr are a terminal, so that there is a person to ask."""
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
        raise JobError(f"Missing {name}. On a terminal, init asks for it.")
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
        raise JobError(f"Missing {name}: no answer was given") from None
