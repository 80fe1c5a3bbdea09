"""How commands show their progress and their result."""

from __future__ import annotations

import contextlib
import json
import platform
from contextlib import AbstractContextManager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pipeline.runs.progress import Progress


def versions() -> str:
    """Return the versions of what runs, read from what is installed: nothing is imported."""
    found = [f"python {platform.python_version()}"]
    for name in ("ray", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return f"pipeline {metadata.version('batch-inference-pipeline')} ({', '.join(found)})"


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
    from pipeline.process.interrupts import ignore_stops
    from pipeline.process.screen import show_rendered
    from pipeline.report.document import Report
    from pipeline.report.showing.document_table import render_document
    from pipeline.report.showing.printed import Printed
    from pipeline.report.showing.render import render_table

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
        typer.echo(json.dumps(document, allow_nan=False))
    if code:
        raise typer.Exit(code)
