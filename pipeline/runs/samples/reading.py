"""Read and shrink the originals of few rows in a child process, which may crash or hang.

Rows of one file go together; where that ends the child they go one by one, so that a hostile file
costs its own row its picture, and all of them at most `_ALL_S`.
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
from pipeline.report.showing.samples import PICTURE_BYTES, PICTURE_PX, Picture
from pipeline.runs.samples.originals import Original, OriginalFinder

_STAGE = "sample"
_CALL_S, _ALL_S = 10.0, 20.0
_MAX_EXITS = 3
_MAX_BYTES = 4 * 2**30
_MAX_CHARS = 20_000
_ASKED = pa.schema([(ROW_ID, pa.string()), (URI, pa.string())])
_FOUND = pa.schema(
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
class Small:
    """What a row was predicted from, small enough for a page."""

    picture: Picture | None = None
    texts: tuple[str, ...] = ()
    """Their first 20,000 characters."""
    problem: str = ""
    """Why there is neither."""


@dataclass(frozen=True)
class Reading:
    """The work of the child."""

    finder: OriginalFinder

    def open(self) -> Mapping[str, Step]:
        """Find out how the input is read."""
        self.finder.columns("images", "texts")
        return {_STAGE: self._read}

    def _read(self, rows: pa.Table, _: Counters) -> pa.Table:
        found = self.finder.find(rows, "images", "texts")
        return pa.Table.from_pylist([*map(_small, found)], schema=_FOUND)


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
    by_file: dict[str, list[tuple[str, str]]] = {}
    for row in dict.fromkeys(rows):
        by_file.setdefault(row[1], []).append(row)
    found: dict[str, Small] = {}
    until_s, exits = monotonic() + _ALL_S, 0
    child = Child(Reading(finder), _CALL_S, _ALL_S, max_bytes=_MAX_BYTES, is_silent=True)
    with contextlib.closing(child):
        left = [*by_file.values()]
        while left:
            group = left.pop(0)
            if exits >= _MAX_EXITS or monotonic() >= until_s:
                why = "not read: others took too long, or ended the process that reads them"
                found |= {row_id: Small(problem=why) for row_id, _ in group}
                continue
            answer = child.call(_STAGE, _table(group))
            if isinstance(answer, ChildResult):
                found |= dict(_told(answer.rows))
                continue
            exits += 1
            if len(group) > 1 and answer.had_started:
                left = [*([row] for row in group), *left]
            else:
                found |= {row_id: Small(problem=answer.message) for row_id, _ in group}
    return found


def _table(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.table([[row_id for row_id, _ in rows], [uri for _, uri in rows]], schema=_ASKED)


def _told(rows: pa.Table) -> Iterator[tuple[str, Small]]:
    for row in rows.to_pylist():
        picture = None
        if row["jpeg"] is not None:
            picture = Picture(row["jpeg"], row["width_px"], row["height_px"])
        yield row[ROW_ID], Small(picture, tuple(row["texts"] or ()), row["problem"] or "")
