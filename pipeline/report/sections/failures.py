"""Rows that failed, by reason and cause; files that were skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.core.printable import num_of
from pipeline.report.sections import Section
from pipeline.report.showing.blocks import Bar, Block, Table, format_count, table_of
from pipeline.storage.skipped import Skipped

if TYPE_CHECKING:
    from pipeline.report.document import Report


class FailedRows(Section):
    """Rows that failed for one cause, with one of them as an example."""

    reason: str
    stage: str | None = None
    """Null if it is unknown."""
    message: str | None = None
    """Message of the example; null for messages that are not told apart."""
    num_rows: int
    at_least: bool = False
    """More rows may have failed for it: the messages of some with this reason were not kept."""
    row_id: str | None = None
    """The example: the first of these rows by name."""


def failures_block(report: Report) -> Block:
    """Return the reasons with their rows, and the most frequent causes."""
    most = max(report.reasons.values(), default=0) or 1
    reasons = sorted(report.reasons.items(), key=lambda reason: -reason[1])
    rows = [(name, format_count(number), Bar(100 * number / most)) for name, number in reasons]
    unreadable = f"Unreadable shards: {format_count(report.unreadable_shards)}. How many rows they "
    return Block(
        "Why rows failed",
        failure_lines(report),
        table=Table(("reason", "rows", ""), rows),
        note=f"{unreadable}hold is unknown." if report.unreadable_shards else "",
    )


def failure_lines(report: Report) -> list[str]:
    """Return a line per cause, with one of its rows."""
    return [
        f"{'at least ' if cause.at_least else ''}{num_of(cause.num_rows, 'row')} {cause.reason}"
        + (f" at {cause.stage}" if cause.stage else "")
        + (f": {cause.message}" if cause.message else "")
        + (f" (e.g. {cause.row_id})" if cause.row_id else "")
        for cause in report.top_failures
    ]


class SkippedReason(Section):
    """Files that were skipped for one reason."""

    reason: str
    files: int
    first: list[str] = Field(default_factory=list)
    """Names of the first ones, relative to the source."""


class SkippedExtension(Section):
    """Files of one extension, for the reason `extension`."""

    extension: str
    files: int


class SkippedFiles(Section):
    """Files below the source that are not input; null if it was not listed."""

    files: int | None = None
    judged: int | None = None
    """Those that `gates.max_skipped_pct` counts."""
    reasons: list[SkippedReason] = Field(default_factory=list)
    extensions: list[SkippedExtension] = Field(default_factory=list)


def skipped_block(report: Report) -> Block:
    """Return the reasons with their files."""
    return Block("Skipped files", skipped_lines(report), table=table_of(report.skipped.reasons))


def skipped_lines(report: Report) -> list[str]:
    """Say in one line which files were skipped."""
    skipped = report.skipped
    if not skipped.files:
        return []
    names = Skipped.from_dict(skipped.model_dump()).describe()
    return [f"skipped {num_of(skipped.files, 'file')}: {names}"]
