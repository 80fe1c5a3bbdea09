"""Read and shrink the originals of few rows in a child process, which may crash or hang.

Rows of one URI go together: a hostile file costs its own rows their pictures, and all of them at
most `_ALL_S`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.figures.counters import Counters
from pipeline.core.schema import ROW_ID, URI
from pipeline.execution.isolation.child_process import Child, ChildResult, Step
from pipeline.preprocessing.images.thumbnails import Thumbnail
from pipeline.published.originals import Original, OriginalFinder
from pipeline.report.showing.samples import PICTURE_BYTES, PICTURE_PX, Small

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


@dataclass(frozen=True)
class Reading:
    """The work of the child."""

    finder: OriginalFinder

    def open(self) -> Mapping[str, Step]:
        """Find out how the input is read."""
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


def read_small(finder: OriginalFinder, rows: Iterable[tuple[str, str]]) -> dict[str, Small]:
    """Read what rows were predicted from; one that cannot be read has the reason.

    Args:
        rows: Id and URI of each.

    Returns:
        By id.

    Raises:
        PipelineError: The input is not the one that was planned any more, or cannot be read.
    """
    by_uri: dict[str, list[dict[str, str]]] = {}
    for row_id, uri in dict.fromkeys(rows):
        by_uri.setdefault(uri, []).append({ROW_ID: row_id, URI: uri})
    small: dict[str, Small] = {}
    until_s = monotonic() + _ALL_S
    child = Child(Reading(finder), _CALL_S, _ALL_S, max_bytes=_MAX_BYTES, is_silent=True)
    with contextlib.closing(child):
        for asked in by_uri.values():
            why = "not read: others took too long"
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
