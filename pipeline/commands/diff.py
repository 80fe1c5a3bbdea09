"""The command `diff`: it writes a page, and ends with 3 if too many rows differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import show
from pipeline.core.errors import GateRefused, JobError


def diff(
    before: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Root of the output, or folder of a partition; append @3 for version 3.",
        ),
    ],
    now: Annotated[
        str | None,
        typer.Argument(
            metavar="[B]", help="The same. Default: compare A with what was published before it."
        ),
    ] = None,
    html: options.HtmlOption = None,
    rows_to: Annotated[
        Path | None, typer.Option(help="Write the rows that differ to this Parquet file.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference of equal numbers.")] = 0.001,
    fail_over: Annotated[
        str | None,
        typer.Option(metavar="PCT", help="Exit with 3 if more rows differ than this, such as 1%."),
    ] = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare two published versions, row by row.

    Compares which rows there are, and their labels, scores, vectors and boxes.
    """
    from pipeline.operations.diff import diff as compare

    limit_pct = None if fail_over is None else _percentage(fail_over)
    comparison = compare(
        before, now, rows_to=rows_to, tolerance=tolerance, storage_options=storage_options
    )
    if html is not None:
        comparison.to_html(html)
    show(comparison, as_json=as_json)
    if limit_pct is not None and comparison.differing_pct > limit_pct:
        message = (
            f"{comparison.differing_pct:.4g}% of the rows differ, more than --fail-over {fail_over}"
        )
        typer.echo(message, err=True)
        raise typer.Exit(GateRefused.exit_code)


def _percentage(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise JobError(f"--fail-over {text}: write a percentage from 0 to 100, such as 1%")
    return value
