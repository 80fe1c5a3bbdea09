"""What a command does around its operation: progress, last lines, result and exit code."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module, metadata
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import typer

from pipeline.core.environment import SUBMITTED
from pipeline.core.errors import GateRefused, InputMissing, JobError
from pipeline.core.printable import clean_message, printable
from pipeline.process.keeper import prepare_last_lines
from pipeline.process.shared_notes import note

if TYPE_CHECKING:
    from pipeline.runs.progress import Progress

Command = Callable[..., None]
_ALLOWED = range(GateRefused.exit_code, InputMissing.exit_code + 1)
_HIDDEN = "..."


def calls_operation(
    *, shows_progress: bool = False, starts_ray: bool = False, can_resume: bool = False
) -> Callable[[Command], Command]:
    """Make a command call the operation of its name, and show the result.

    The operation `stop` is the function `stop` of `pipeline.operations.stop`; it is imported when
    the command runs. The parameters of the command are those of the operation, plus `as_json`,
    `quiet`, `log_format` and `ok_exit`. A parameter that was not given is left to the operation.

    Args:
        shows_progress: The operation takes `progress`.
        starts_ray: The operation always starts Ray, so start-up begins while it is imported.
        can_resume: After an interruption the last line is the command that resumes the work.
    """

    def decorated(command: Command) -> Command:
        @functools.wraps(command)
        def call(**given: Any) -> None:
            as_json, quiet = given.pop("as_json", False), given.pop("quiet", False)
            given.pop("log_format", None)  # read before, by `process/screen`
            ok_exit = given.pop("ok_exit", None)
            if can_resume:
                _prepare_to_resume(given, ok_exit)
            elif ok_exit is not None:
                prepare_last_lines(None, _exit_codes(ok_exit))
            with ExitStack() as during:
                if shows_progress:
                    progress = during.enter_context(_progress_on_terminal(quiet=quiet))
                    given["progress"] = progress
                    if "job" in given:  # before imports that take a while
                        progress.phase(f"reading {given['job']}", is_logged=False)
                if starts_ray:
                    from pipeline.execution.embedded.forkserver import started_ahead

                    during.enter_context(started_ahead(given["address"]))
                operation = operation_of(command)
                # Standard output belongs to the result, if a program reads it.
                write = functools.partial(typer.echo, nl=False, err=as_json or quiet)
                of_command = {
                    "owns_process": True,
                    "write": write,
                    "needs_document": as_json,
                    "quiet": quiet,
                }
                taken = inspect.signature(operation).parameters
                given |= {name: value for name, value in of_command.items() if name in taken}
                result = operation(**{k: value for k, value in given.items() if value is not None})
            if can_resume and given.get("from_") is not None:
                # Whatever exit code one date had, the same command continues with the others.
                note(goes_on=[*range(1, InputMissing.exit_code + 1)])
            if result is not None:
                show(result, as_json=as_json, quiet=quiet)

        call.__dict__["is_signature"] = True
        return call

    return decorated


def operation_of(command: Command) -> Callable[..., Any]:
    """Import and return the operation that has the name of a command."""
    name = command.__name__
    operation: Callable[..., Any] = getattr(import_module(f"pipeline.operations.{name}"), name)
    return operation


def versions() -> str:
    """Return the versions of this package, Python, Ray and torch without importing them."""
    packages = [f"python {platform.python_version()}"]
    for name in ("ray", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    return f"pipeline {metadata.version('batch-inference-pipeline')} ({', '.join(packages)})"


def _progress_on_terminal(*, quiet: bool) -> AbstractContextManager[Progress]:
    from pipeline.runs.progress import Silent, TerminalProgress

    return contextlib.nullcontext(Silent()) if quiet else TerminalProgress()


def show(result: Any, *, as_json: bool, quiet: bool = False) -> None:
    """Show the result of an operation as tables, as one JSON document, or not at all.

    Args:
        result: A dict, a `Report` or a `Printed`; a tuple adds the exit code to a dict.
        as_json: Write the document to stdout; the tables of a report then go to stderr.
        quiet: Write no tables.

    Raises:
        typer.Exit: The result has another exit code than 0.
    """
    from pipeline.core.printable import json_text
    from pipeline.process.interrupts import ignore_stops
    from pipeline.process.screen import show_rendered
    from pipeline.report.document import Report
    from pipeline.report.render import render_table
    from pipeline.report.showing.printed import Printed, render_document

    ignore_stops()
    result, code = result if isinstance(result, tuple) else (result, 0)
    error = result.get("error") if code else None
    if isinstance(result, Report):
        document = result.model_dump(mode="json")
        if not quiet:
            show_rendered(render_table(result), to_stderr=as_json)
    else:
        is_printed = isinstance(result, Printed)
        document, shown = result, result
        if is_printed:
            document, shown = result.to_dict(), result.shown()
            code = getattr(result, "exit_code", 0)
        if shown and not (as_json or quiet):
            show_rendered(render_document(shown))
    if as_json:
        typer.echo(json_text(document))
    if error:
        typer.echo(f"error: {error}", err=True)
    if code:
        raise typer.Exit(code)


def _prepare_to_resume(given: dict[str, Any], ok_exit: str | None) -> None:
    """Prepare the last lines of a command, and fix the date that the operation uses.

    Tomorrow the same command must name today. A command without dates is repeated as it is.
    """
    if given.get("from_") is not None:
        given["to"] = prepare_end(given["to"], ok_exit, "--to", given["every"])
    elif "date" in given:
        given["date"] = prepare_end(given["date"], ok_exit)
    else:
        prepare_last_lines(same_command(sys.argv, "", None), frozenset())


def prepare_end(
    date: str | None, ok_exit: str | None = None, option: str = "--date", every: str = "day"
) -> str:
    """Prepare the last lines of a command, and return its date as text.

    Args:
        date: The date that was given; None: now in UTC.
        ok_exit: The value of --ok-exit.
        option: The option that names the date; for several dates, the last one.
        every: `day` or `hour`: the precision of now.

    Raises:
        JobError: The date is wrong, or `ok_exit` is no list of exit codes that may be accepted.
    """
    from pipeline.job.reading.dates import date_text, now, parse_date

    day = date_text(now(every) if date is None else parse_date(date))
    command = None if os.environ.get(SUBMITTED) else same_command(sys.argv, day, option)
    prepare_last_lines(command, _exit_codes(ok_exit))
    return day


def _exit_codes(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) in _ALLOWED for word in words):
        raise JobError(
            f"--ok-exit {text}: write exit codes from {_ALLOWED[0]} to {_ALLOWED[-1]}, such as 3,4"
        )
    return frozenset(map(int, words))


def same_command(argv: Sequence[str], day: str, option: str | None = "--date") -> str:
    """Return the command that does the same for a date: one printable line, without secrets."""
    program, *rest = argv
    name = ["pipeline"] if PurePath(program).name == "pipeline" else ["python", "-m", "pipeline"]
    shown = [_without_secrets(word) for word in rest]
    if option and not any(word == option or word.startswith(f"{option}=") for word in rest):
        shown += [option, day]
    return printable(shlex.join([*name, *shown]))


def _without_secrets(word: str) -> str:
    from pipeline.storage.errors import redact

    field, separator, value = word.removeprefix("--set=").partition("=")
    if "storage_options" in field or "storage_options" in value:
        return word[: word.index(field) + len(field)] + separator + _HIDDEN
    hidden = redact(word)
    return word if hidden == clean_message(word, len(hidden)) else hidden
