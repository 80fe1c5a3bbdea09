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
    from pipeline.report.document import Report
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


def show_report(report: Report, *, as_json: bool, quiet: bool) -> None:
    """Show the report of a run: as tables (on stderr beside JSON), as JSON, or not at all."""
    from pipeline.process.interrupts import ignore_stops
    from pipeline.process.screen import show_rendered
    from pipeline.report.showing.render import render_table

    ignore_stops()
    if not quiet:
        show_rendered(render_table(report), to_stderr=as_json)
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), allow_nan=False))


def show(document: dict[str, Any], *, as_json: bool, quiet: bool = False) -> None:
    """Show what a command has found: as tables, as one JSON document, or not at all."""
    from pipeline.process.interrupts import ignore_stops

    ignore_stops()
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    if as_json or quiet:
        return
    from pipeline.process.screen import show_rendered
    from pipeline.report.showing.document_table import render_document

    show_rendered(render_document(document))
