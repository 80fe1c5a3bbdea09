"""The commands that look at what a job has published, or tidy it up, and `pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import options
from pipeline.commands.operation import calls, show
from pipeline.core.errors import GateRefused, JobError


@calls("outputs:report")
def report(
    uri: options.OutputUri,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Default: latest.")] = None,
    partition: options.PartitionOption = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the report of a run that is stored beside its output."""


@calls("outputs:inspect")
def inspect(
    uri: options.OutputUri,
    partition: options.PartitionOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a page here.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Least certain rows on that page.")] = 8,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show what is published: rows, labels, predictions, quarantine."""


def diff(
    before: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The sink's root, or a partition's folder; with @3 version 3."
        ),
    ],
    now: Annotated[
        str | None,
        typer.Argument(metavar="[B]", help="Likewise. Default: A, beside what was before it."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page here.")] = None,
    rows_to: Annotated[
        Path | None, typer.Option(help="Write the rows that differ here, as Parquet.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="How far numbers may be off.")] = 0.001,
    fail_over: Annotated[
        str | None,
        typer.Option(metavar="PCT", help="Exit with 3 if more of the rows differ, as 1%."),
    ] = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare two published versions, row by row.

    Labels, scores, vectors and boxes of a row are compared, and which rows there are.
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


@calls("outputs:verify")
def verify(
    uri: options.OutputUri,
    partition: options.PartitionOption = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Prove what is published: checksums, sums of rows, ids.

    Rows of the input are predicted or in the quarantine, each once.
    """


@calls("maintenance:rollback")
def rollback(
    job: options.JobFile,
    date: options.DateOption = None,
    overrides: options.SetOption = None,
    to: Annotated[int | None, typer.Option("--to", help="Version number. Default: newest.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Publish a replaced version of the job's partition again."""


@calls("maintenance:gc")
def gc(
    job: options.JobFile,
    date: options.DateOption = None,
    all_partitions: Annotated[
        bool, typer.Option("--all", help="Of all partitions of the output.")
    ] = False,
    overrides: options.SetOption = None,
    grace_s: Annotated[float, typer.Option(help="Keep staging younger than this.")] = 86400.0,
    as_json: options.JsonOption = False,
) -> None:
    """Delete staged slices that no unfinished run can need any more."""


@calls("pull:pull")
def pull(
    uri: Annotated[str, typer.Argument(metavar="hf://ORG/NAME[@REVISION]", help="What to copy.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A folder, on any store.")],
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Only these files; repeatable."),
    ] = None,
    storage_options: options.StorageOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Copy a model directory from a hub to a store, at one commit.

    Only data, of which nothing is run when it is loaded; each file is checked.
    """
