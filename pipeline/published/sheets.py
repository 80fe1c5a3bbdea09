"""The sheet of a version: which rows, what they were predicted from, what was predicted."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    DURATION_S,
    LABEL,
    ROW_ID,
    SCORE,
    URI,
)
from pipeline.job.source import Source
from pipeline.published.choosing import LISTS, least_certain, score_column
from pipeline.published.dataset import PublishedParts
from pipeline.published.originals import OriginalFinder
from pipeline.published.reading import read_small
from pipeline.report.showing.samples import Row, Small, sheet_html

log = logging.getLogger(__name__)

_MAX_ROWS = 20_000_000
_PLAIN_COLUMNS = 4


def try_sheet(finder: OriginalFinder, number: int) -> str:
    """Return the sheet of a version as HTML; what goes wrong is said there, and a warning.

    Args:
        number: The most rows; 0: there is no sheet, and nothing is read.
    """
    if not number:
        return ""
    try:
        return make_sheet(finder, number)
    except Exception as error:  # noqa: BLE001  # a version is no worse for lack of its pictures
        reason = error if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        why = clean_message(f"no sheet of rows: {reason}")
        log.warning("%s", why)
        return sheet_html("", (), {}, why)


def make_sheet(finder: OriginalFinder, number: int) -> str:
    """Return the sheet of a version as HTML.

    Raises:
        PipelineError: A part of the version is gone, or damaged.
    """
    versions = [(finder.layout, finder.manifest)]
    parts = PublishedParts.of(finder.store, versions, "predictions")
    title, column, shown = "The first rows", score_column(parts), _shown(parts.schema)
    if column is None:
        rows = parts.dataset().head(number, columns=shown)
    else:
        title = "Least certain"
        rows, looked_at = least_certain(parts, column, number, shown, _MAX_ROWS)
        if looked_at < parts.num_rows:
            title += f", of the first {looked_at:,} rows"
    chosen = rows.to_pylist()
    small, problem = _originals(finder, chosen)
    return sheet_html(title, chosen, small, problem)


def _shown(schema: pa.Schema) -> list[str]:
    """Return the id, the URI and the columns that can be shown of a prediction."""
    shown = [name for name in (LABEL, SCORE, *LISTS) if name in schema.names]
    if not shown:
        plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
        shown = [name for name in plain if name not in (ROW_ID, URI, DURATION_S)][:_PLAIN_COLUMNS]
    return [name for name in (ROW_ID, URI, *shown, DURATION_S) if name in schema.names]


def _originals(finder: OriginalFinder, rows: Iterable[Row]) -> tuple[dict[str, Small], str]:
    """Return what rows were predicted from, and why that is not known."""
    asked = [(row[ROW_ID], row[URI] or "") for row in rows]
    if not asked or _has_no_look(finder):
        return {}, ""
    try:
        return read_small(finder, asked), ""
    except PipelineError as error:
        return {}, clean_message(f"without pictures and texts: {error}")


def _has_no_look(finder: OriginalFinder) -> bool:
    """Tell whether rows are numbers or clips of sound, of which a page shows predictions alone."""
    document = finder.manifest.source
    source = Source.from_published(document, "input", {}) if document else None
    return source is not None and (source.is_table or not source.encoded.has_look)
