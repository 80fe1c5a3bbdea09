"""A sheet of rows as HTML: small pictures with boxes, excerpts of texts with entities, predictions.

Every text is data and is escaped; the sheet loads nothing. A picture has at most `PICTURE_BYTES`, a
text `TEXT_CHARS`, each with about 2 KB of HTML around it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.core.printable import clean_message, printable
from pipeline.core.schema import (
    DETECTIONS,
    DURATION_S,
    END,
    ENTITIES,
    LABEL,
    LABELS,
    ROW_ID,
    SCORE,
    START,
    URI,
)
from pipeline.preprocessing.images.thumbnails import Thumbnail

PICTURE_PX, PICTURE_BYTES = 176, 6_000
TEXT_CHARS = 280
_BEFORE_CHARS = 40
_BOXES, _MARKS = 24, 24
_PREDICTION_CHARS, _ID_CHARS = 120, 100
_NAMED = 3
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Small:
    """The input of a row, small enough for a page."""

    picture: Thumbnail | None = None
    texts: tuple[str, ...] = ()
    problem: str = ""
    """Why there is neither."""


def sheet_html(
    title: str, rows: Sequence[Row], seen: Mapping[str, Small], problem: str = ""
) -> str:
    """Return rows as sections of a page; '' if there is nothing to say.

    Args:
        rows: Published rows: the id, and the columns of the prediction that can be shown.
        seen: Id -> input.
        problem: Says what is missing, and why.
    """
    shown = ""
    if rows:
        css_class = "sheet texts" if any(small.texts for small in seen.values()) else "sheet"
        figures = (_figure(row, seen.get(row[ROW_ID], Small())) for row in rows)
        items = "\n".join(f"<li>{figure}</li>" for figure in figures)
        shown = (
            f'<section><h2>{_text(title)}</h2>\n<ul class="{css_class}">\n{items}\n</ul></section>'
        )
    if problem:
        shown += f'\n<section><p class="soft">{_text(problem)}</p></section>'
    return shown


def _figure(row: Row, seen: Small) -> str:
    shown = ""
    if seen.picture is not None:
        shown = _picture(seen.picture, row)
    elif seen.problem:
        shown = f'<div class="picture"><p class="soft">{_text(seen.problem)}</p></div>'
    for number, text in enumerate(seen.texts):
        pieces = "".join(_pieces(text, row.get(ENTITIES) or () if number == 0 else ()))
        shown += f"<blockquote>{pieces}</blockquote>"
    return (
        f"<figure>{shown}<figcaption><b>{_text(_prediction(row), _PREDICTION_CHARS)}</b>"
        f"<span>{_text(row[ROW_ID], _ID_CHARS)}</span></figcaption></figure>"
    )


def _prediction(row: Row) -> str:
    """Return the prediction of a row in words."""
    length = f", {row[DURATION_S]:.1f} s" if row.get(DURATION_S) is not None else ""
    for name in (DETECTIONS, ENTITIES, LABELS):
        if name in row:
            return _entries(name, row[name] or []) + length
    values = [row[name] for name in (LABEL, SCORE) if name in row]
    if values:
        return " ".join(map(_value, values)) + length
    shown = {name: value for name, value in row.items() if name not in (ROW_ID, URI)}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def _entries(name: str, entries: list[Row]) -> str:
    if not entries:
        return f"no {name}"
    best = sorted(entries, key=lambda entry: -(entry[SCORE] or 0.0))
    more = f", and {len(best) - _NAMED} more" if len(best) > _NAMED else ""
    best_texts = (f"{_value(entry[LABEL])} {_value(entry[SCORE])}" for entry in best[:_NAMED])
    return ", ".join(best_texts) + more


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _picture(picture: Thumbnail, row: Row) -> str:
    scale = PICTURE_PX / max(picture.width_px, picture.height_px, 1)
    width, height = (max(1, round(min(scale, 1) * side)) for side in
                     (picture.width_px, picture.height_px))  # fmt: skip
    data = b64encode(picture.jpeg).decode("ascii")
    image = (
        f'<img alt="{_text(row[ROW_ID], _ID_CHARS)}" width="{width}" height="{height}" '
        f'src="data:image/jpeg;base64,{data}">'
    )
    boxes = "".join(map(_box, (row.get(DETECTIONS) or ())[:_BOXES]))
    if boxes:
        image += (
            f'<svg viewBox="0 0 {picture.width_px} {picture.height_px}" aria-hidden="true" '
            f'preserveAspectRatio="none">{boxes}</svg>'
        )
    return f'<div class="picture"><div class="frame">{image}</div></div>'


def _box(box: Row) -> str:
    x, y = round(box["x_min"], 1), round(box["y_min"], 1)
    wide, high = max(0.0, round(box["x_max"] - x, 1)), max(0.0, round(box["y_max"] - y, 1))
    return f'<rect class="box" x="{x}" y="{y}" width="{wide}" height="{high}"></rect>'


def _pieces(text: str, marks: Sequence[Row]) -> Iterator[str]:
    """Yield an excerpt of a text around its first mark, with its marks."""
    ordered = sorted(marks, key=lambda mark: mark[START])[:_MARKS]
    begin = max(0, ordered[0][START] - _BEFORE_CHARS) if ordered else 0
    begin = 0 if begin + TEXT_CHARS >= len(text) and len(text) <= TEXT_CHARS else begin
    end = min(len(text), begin + TEXT_CHARS)
    at = begin
    if begin:
        yield "\u2026"
    for mark in ordered:
        if mark[START] < at or mark[END] > end or mark[END] <= mark[START]:
            continue  # it overlaps the mark before, or is outside the excerpt
        yield escape(printable(text[at : mark[START]]))
        label = _text(mark[LABEL] or "", 24)
        marked = escape(printable(text[mark[START] : mark[END]]))
        yield f"<mark>{marked} <small>{label}</small></mark>"
        at = mark[END]
    yield escape(printable(text[at:end]))
    if end < len(text):
        yield "\u2026"


def _text(text: str, max_chars: int = 300) -> str:
    cleaned = clean_message(text, max_chars + 1)
    return escape(cleaned if len(cleaned) <= max_chars else f"{cleaned[: max_chars - 1]}\u2026")
