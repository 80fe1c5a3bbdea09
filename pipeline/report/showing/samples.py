"""A sheet of rows as HTML: small pictures with boxes, pieces of texts with entities, predictions.

Every text is data, and is escaped; it loads nothing. A picture has at most `PICTURE_BYTES`, a text
`TEXT_CHARS`, and each about 2 KB of HTML around it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.core.printable import clean_message, printable
from pipeline.preprocessing.images.thumbnails import Thumbnail

PICTURE_PX, PICTURE_BYTES = 176, 6_000
TEXT_CHARS = 280
_BEFORE_CHARS = 40
_BOXES, _MARKS = 24, 24
_SAID_CHARS, _ID_CHARS = 120, 100


@dataclass(frozen=True)
class Box:
    """A detection, in pixels of the image."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class Mark:
    """An entity, in characters of the text."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Sample:
    """One row."""

    row_id: str
    said: str
    """What was predicted."""
    picture: Thumbnail | None = None
    texts: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    marks: tuple[Mark, ...] = ()
    """Of the first text."""
    problem: str = ""
    """Why there is neither picture nor text."""


def sheet_html(title: str, samples: Sequence[Sample], problem: str = "") -> str:
    """Return rows as sections of a page; '' if there is nothing to say.

    Args:
        problem: What is missing, and why.
    """
    shown = ""
    if samples:
        kind = "sheet texts" if any(each.texts for each in samples) else "sheet"
        items = "\n".join(f"<li>{_figure(sample)}</li>" for sample in samples)
        shown = f'<section><h2>{_text(title)}</h2>\n<ul class="{kind}">\n{items}\n</ul></section>'
    if problem:
        shown += f'\n<section><p class="soft">{_text(problem)}</p></section>'
    return shown


def _figure(sample: Sample) -> str:
    caption = (
        f"<figcaption><b>{_text(sample.said, _SAID_CHARS)}</b>"
        f"<span>{_text(sample.row_id, _ID_CHARS)}</span></figcaption>"
    )
    shown = ""
    if sample.picture is not None:
        shown = _picture(sample.picture, sample)
    elif sample.problem:
        shown = f'<div class="picture"><p class="soft">{_text(sample.problem)}</p></div>'
    for number, text in enumerate(sample.texts):
        pieces = "".join(_pieces(text, sample.marks if number == 0 else ()))
        shown += f"<blockquote>{pieces}</blockquote>"
    return f"<figure>{shown}{caption}</figure>"


def _picture(picture: Thumbnail, sample: Sample) -> str:
    scale = PICTURE_PX / max(picture.width_px, picture.height_px, 1)
    width, height = (max(1, round(min(scale, 1) * side)) for side in
                     (picture.width_px, picture.height_px))  # fmt: skip
    data = b64encode(picture.jpeg).decode("ascii")
    image = (
        f'<img alt="{_text(sample.row_id, _ID_CHARS)}" width="{width}" height="{height}" '
        f'src="data:image/jpeg;base64,{data}">'
    )
    boxes = "".join(map(_box, sample.boxes[:_BOXES]))
    if boxes:
        image += (
            f'<svg viewBox="0 0 {picture.width_px} {picture.height_px}" aria-hidden="true" '
            f'preserveAspectRatio="none">{boxes}</svg>'
        )
    return f'<div class="picture"><div class="frame">{image}</div></div>'


def _box(box: Box) -> str:
    x, y = round(box.x_min, 1), round(box.y_min, 1)
    wide, high = max(0.0, round(box.x_max - x, 1)), max(0.0, round(box.y_max - y, 1))
    return f'<rect class="box" x="{x}" y="{y}" width="{wide}" height="{high}"></rect>'


def _pieces(text: str, marks: Sequence[Mark]) -> Iterator[str]:
    """Yield a piece of a text around its first mark, with its marks."""
    ordered = sorted(marks, key=lambda mark: mark.start)[:_MARKS]
    begin = max(0, ordered[0].start - _BEFORE_CHARS) if ordered else 0
    begin = 0 if begin + TEXT_CHARS >= len(text) and len(text) <= TEXT_CHARS else begin
    end = min(len(text), begin + TEXT_CHARS)
    at = begin
    if begin:
        yield "\u2026"
    for mark in ordered:
        if mark.start < at or mark.end > end or mark.end <= mark.start:
            continue  # it overlaps the one before, or lies beyond the piece
        yield escape(printable(text[at : mark.start]))
        label = _text(mark.label, 24)
        marked = escape(printable(text[mark.start : mark.end]))
        yield f"<mark>{marked} <small>{label}</small></mark>"
        at = mark.end
    yield escape(printable(text[at:end]))
    if end < len(text):
        yield "\u2026"


def _text(text: str, max_chars: int = 300) -> str:
    cleaned = clean_message(text, max_chars + 1)
    return escape(cleaned if len(cleaned) <= max_chars else f"{cleaned[: max_chars - 1]}\u2026")
