"""The sheet of a version: its least certain rows, with originals and predictions.

The originals are read and shrunk in a child process, since a file may crash or hang it. Rows of one
URI go together: a hostile file costs its own rows their pictures, and all of them at most `_ALL_S`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.figures import Counters
from pipeline.core.printable import clean_message
from pipeline.core.schema import DETECTIONS, DURATION_S, ENTITIES, LABEL, LABELS, ROW_ID, SCORE, URI
from pipeline.execution.isolation.child_process import Child, ChildResult, Step
from pipeline.job.source import Source
from pipeline.preprocessing.images.thumbnails import Thumbnail
from pipeline.published.dataset import PublishedParts
from pipeline.published.originals import Original, OriginalFinder
from pipeline.report.showing.samples import PICTURE_BYTES, PICTURE_PX, Row, Small, sheet_html

log = logging.getLogger(__name__)

_MAX_ROWS = 20_000_000
_PLAIN_COLUMNS = 4
LISTS = (DETECTIONS, LABELS, ENTITIES)
_BATCH_ROWS = 32_768
_STAGE = "sample"
_CALL_S, _ALL_S = 10.0, 20.0
_MAX_BYTES = 4 * 2**30
_MAX_CHARS = 20_000
_ROWS_SCHEMA = pa.schema([(ROW_ID, pa.string()), (URI, pa.string())])
_SMALL_SCHEMA = pa.schema(
    [
        (ROW_ID, pa.string()),
        ("jpeg", pa.binary()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("texts", pa.list_(pa.string())),
        ("problem", pa.string()),
    ]
)


def try_sheet(finder: OriginalFinder, number: int) -> str:
    """Return the sheet of a version as HTML; errors become a warning and a line on the sheet.

    Args:
        finder: Reads the originals of the version.
        number: The most rows; 0: no sheet, and nothing is read.
    """
    if not number:
        return ""
    try:
        return _make_sheet(finder, number)
    except Exception as error:  # noqa: BLE001  # a version is valid without its pictures
        reason = error if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        why = clean_message(f"no sheet of rows: {reason}")
        log.warning("%s", why)
        return sheet_html("", (), {}, why)


def _make_sheet(finder: OriginalFinder, number: int) -> str:
    """Return the sheet of a version as HTML.

    Raises:
        PipelineError: A part of the version is missing or damaged.
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
    """Return id, URI and the columns to show."""
    shown = [name for name in (LABEL, SCORE, *LISTS) if name in schema.names]
    if not shown:
        plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
        shown = [name for name in plain if name not in (ROW_ID, URI, DURATION_S)][:_PLAIN_COLUMNS]
    return [name for name in (ROW_ID, URI, *shown, DURATION_S) if name in schema.names]


def _originals(finder: OriginalFinder, rows: Iterable[Row]) -> tuple[dict[str, Small], str]:
    """Return the originals of rows by id, or none and the reason."""
    asked = [(row[ROW_ID], row[URI] or "") for row in rows]
    if not asked or _has_no_look(finder):
        return {}, ""
    try:
        return _read_small(finder, asked), ""
    except PipelineError as error:
        return {}, clean_message(f"without pictures and texts: {error}")


def _has_no_look(finder: OriginalFinder) -> bool:
    """Tell whether the input is tables or sound, which a page does not show."""
    document = finder.manifest.source
    source = Source.from_published(document, "input", {}) if document else None
    return source is not None and (source.is_table or not source.encoded.has_look)


def score_column(parts: PublishedParts) -> str | None:
    """Return the column with the scores of rows; None if the task gives none."""
    return next((name for name in (SCORE, *LISTS) if name in parts.schema.names), None)


def least_certain(
    parts: PublishedParts,
    column: str,
    number: int,
    columns: Sequence[str] | None = None,
    most: int | None = None,
) -> tuple[pa.Table, int]:
    """Return the rows with the lowest scores, lowest first, and how many rows were compared.

    Only scores are read of all rows, then the row groups with the rows to return.

    Args:
        parts: The parts of predictions.
        column: The column of scores: `score_column`.
        number: The most rows to return; rows without a score are left out.
        columns: The columns to return; None: all.
        most: Number of compared rows after which no further part is read.

    Raises:
        NotReadable: A part is missing.
    """
    lowest_rows: list[tuple[float, int, int]] = []
    looked_at = 0
    for part in range(len(parts.parts)):
        if most is not None and looked_at >= most:
            break
        row, rows = 0, parts.only([part]).dataset()
        for batch in rows.to_batches([column], batch_size=_BATCH_ROWS, batch_readahead=1):
            scores = _scores(batch.column(0), column)
            lowest = np.argsort(scores, kind="stable")[:number]
            lowest = lowest[~np.isnan(scores[lowest])]
            known = ((float(scores[n]), part, row + int(n)) for n in lowest)
            lowest_rows = sorted([*lowest_rows, *known])[:number]
            row += batch.num_rows
        looked_at += row
    datasets = {part: parts.only([part]).dataset() for _, part, _ in lowest_rows}
    tables = [_row_at(datasets[part], row, columns) for _, part, row in lowest_rows]
    return pa.concat_tables([parts.dataset().head(0, columns=columns), *tables]), looked_at


def _row_at(dataset: ds.Dataset, row: int, columns: Sequence[str] | None) -> pa.Table:
    """Read one row of a part, with one row group."""
    [fragment] = dataset.get_fragments()
    for group in fragment.row_groups:
        if row < group.num_rows:
            break
        row -= group.num_rows
    row_group = fragment.subset(row_group_ids=[group.id])
    return row_group.to_table(schema=dataset.schema, columns=columns).slice(row, 1)


def _scores(values: pa.Array, column: str) -> npt.NDArray[np.float64]:
    """Return the score of each row, NaN for none: of entries the best, of entities the worst."""
    if column == SCORE:
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    rows = np.asarray(pc.list_parent_indices(values))
    entries = values.flatten().field(SCORE).cast(pa.float64()).to_numpy(zero_copy_only=False)
    scores = np.full(len(values), np.nan)
    pick = np.fmin if column == ENTITIES else np.fmax
    pick.at(scores, rows, entries)
    return scores


@dataclass(frozen=True)
class Reading:
    """Reads originals in the child process."""

    finder: OriginalFinder

    def open(self) -> Mapping[str, Step]:
        """Read the plan of the version."""
        self.finder.columns("images", "texts")
        return {_STAGE: self._read}

    def _read(self, rows: pa.Table, _: Counters) -> pa.Table:
        originals = self.finder.find(rows, "images", "texts")
        return pa.Table.from_pylist([*map(_small, originals)], schema=_SMALL_SCHEMA)


def _small(original: Original) -> dict[str, Any]:
    row: dict[str, Any] = {ROW_ID: original.row_id, "problem": original.problem}
    if original.text is not None:
        texts = original.text if isinstance(original.text, tuple) else (original.text,)
        row["texts"] = [text[:_MAX_CHARS] for text in texts if text is not None]
    if original.data is not None:
        try:
            small = original.thumbnail(PICTURE_PX, PICTURE_BYTES)
        except JobError as error:
            row["problem"] = str(error).removeprefix(f"{original.row_id}: ")
        else:
            row |= vars(small)
    return row


def _read_small(finder: OriginalFinder, rows: Iterable[tuple[str, str]]) -> dict[str, Small]:
    """Read the originals of rows; one that cannot be read has the reason instead.

    Args:
        finder: Reads the originals of the version.
        rows: Id and URI of each row.

    Returns:
        Row id -> small original.

    Raises:
        PipelineError: The input has changed since the plan, or cannot be read.
    """
    by_uri: dict[str, list[dict[str, str]]] = {}
    for row_id, uri in dict.fromkeys(rows):
        by_uri.setdefault(uri, []).append({ROW_ID: row_id, URI: uri})
    small: dict[str, Small] = {}
    until_s = monotonic() + _ALL_S
    child = Child(Reading(finder), _CALL_S, _ALL_S, max_bytes=_MAX_BYTES, is_silent=True)
    with contextlib.closing(child):
        for asked in by_uri.values():
            why = "not read: other rows took too long"
            if monotonic() < until_s:
                answer = child.call(_STAGE, pa.Table.from_pylist(asked, schema=_ROWS_SCHEMA))
                if isinstance(answer, ChildResult):
                    small |= dict(_small_by_id(answer.rows))
                    continue
                why = answer.message
            small |= {row[ROW_ID]: Small(problem=why) for row in asked}
    return small


def _small_by_id(rows: pa.Table) -> Iterator[tuple[str, Small]]:
    for row in rows.to_pylist():
        picture = None
        if row["jpeg"] is not None:
            picture = Thumbnail(row["jpeg"], row["width_px"], row["height_px"])
        yield row[ROW_ID], Small(picture, tuple(row["texts"] or ()), row["problem"] or "")
