"""What a command is that does no more than its operation: parse, call, show."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, Literal

import typer

from pipeline.commands.again import goes_on_with_dates, prepare_end, prepare_end_of_same

if TYPE_CHECKING:
    from pipeline.runs.progress import Progress

Command = Callable[..., None]


def calls(
    operation: str,
    *,
    shows_progress: bool = False,
    starts_ray: bool = False,
    goes_on: Literal["date", "dates", "same"] | None = None,
) -> Callable[[Command], Command]:
    """Let a command call an operation, which is imported then, and show what it returns.

    The parameters of the command have the names of those of the operation, beside `as_json`,
    `quiet`, `log_format` and `ok_exit`. What is not given is left to the operation.

    Args:
        operation: `module:function` below `pipeline.operations`.
        shows_progress: It takes `progress`.
        starts_ray: In any case, so that a part of that is begun while the operation is imported.
        goes_on: It is work that a signal may end. The command that goes on names the date, the last
            of several dates, or is the `same`.
    """

    def decorated(command: Command) -> Command:
        @functools.wraps(command)
        def call(**given: Any) -> None:
            as_json, quiet = given.pop("as_json"), given.pop("quiet", False)
            given.pop("log_format", None)  # read before, by `process/screen`
            if goes_on is not None:
                _prepare_end(goes_on, given)
            with ExitStack() as during:
                if shows_progress:
                    progress = during.enter_context(progress_on_terminal(quiet=quiet))
                    given["progress"] = progress
                    if "job" in given:  # before what takes a while to import
                        progress.phase(f"reading {given['job']}", is_logged=False)
                if starts_ray:
                    from pipeline.execution.embedded.forkserver import started_ahead

                    during.enter_context(started_ahead(given["address"]))
                module, _, name = operation.partition(":")
                act = getattr(import_module(f"pipeline.operations.{module}"), name)
                result = act(**{key: value for key, value in given.items() if value is not None})
            if goes_on == "dates":
                goes_on_with_dates()
            show(result, as_json=as_json, quiet=quiet)

        call.__dict__["operation"] = operation
        return call

    return decorated


def _prepare_end(goes_on: str, given: dict[str, Any]) -> None:
    """Prepare the last lines of the command, and give the operation the date that they name."""
    ok_exit = given.pop("ok_exit", None)
    given["owns_process"] = True
    if goes_on == "date":
        given["date"] = prepare_end(given["date"], ok_exit)
    elif goes_on == "dates":
        given["to"] = prepare_end(given["to"], ok_exit, "--to", given["every"])
    else:
        prepare_end_of_same()


def versions() -> str:
    """Return the versions of what runs, read from what is installed: nothing is imported."""
    packages = [f"python {platform.python_version()}"]
    for name in ("ray", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    return f"pipeline {metadata.version('batch-inference-pipeline')} ({', '.join(packages)})"


def progress_on_terminal(*, quiet: bool) -> AbstractContextManager[Progress]:
    """Return where a command shows how far it is, in the body."""
    from pipeline.runs.progress import Silent, TerminalProgress

    return contextlib.nullcontext(Silent()) if quiet else TerminalProgress()


def show(result: Any, *, as_json: bool, quiet: bool = False) -> None:
    """Show what an operation returns, as tables, as one JSON document, or not at all.

    Args:
        result: A dict, a report, or what prints; perhaps with an exit code.
        as_json: Write the document; beside that of a report its tables go to stderr.
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
    document, is_report = result, isinstance(result, Report)
    if is_report:
        document = result.model_dump(mode="json")
    elif isinstance(result, Printed):
        document, code = result.to_dict(), getattr(result, "exit_code", 0)
    if is_report and not quiet:
        show_rendered(render_table(result), to_stderr=as_json)
    elif not (as_json or quiet):
        show_rendered(render_document(result.shown() if isinstance(result, Printed) else document))
    if as_json:
        typer.echo(json_text(document))
    if code:
        if "error" in document:
            typer.echo(f"error: {document['error']}", err=True)
        raise typer.Exit(code)
