"""Results that print as tables, and the same as HTML for notebooks and pages.

Tables for a terminal are made for 80 columns: unknown values are omitted (`--json` has them, as
null), and nothing is cut. The HTML is tables and facts, escaped, without scripts, styles or
requests; a cell has at most 80 characters and a table 60 rows of 12 columns, which bounds it to
300 KB.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

from pipeline.core.printable import clean_message, printable
from pipeline.process.screen import as_lines
from pipeline.report.showing.blocks import UNKNOWN, format_field, is_unknown, title_of

if TYPE_CHECKING:
    from rich.console import RenderableType

P = ParamSpec("P")
_IMPLIED_BY = {"created_at": "run_id"}
"""Redundant column -> the column that has its value: a run id begins with its time."""


class Printed(ABC):
    """A result whose text is the document of `shown`, as tables without styles."""

    @abstractmethod
    def shown(self) -> Mapping[str, Any]:
        """Return the part that a terminal has room for."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""

    def __str__(self) -> str:
        return as_lines(render_document(self.shown())).rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the same for a notebook, escaped."""
        return text_html(str(self))


class PrintedDict(Printed, dict[str, Any]):
    """A dict for programs; `print` of it gives tables, without styles."""

    def shown(self) -> dict[str, Any]:
        """Return the part that a terminal has room for."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return dict(self)


def printed(operation: Callable[P, dict[str, Any]]) -> Callable[P, PrintedDict]:
    """Let an operation return its dict as `PrintedDict`."""

    @functools.wraps(operation)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> PrintedDict:
        return PrintedDict(operation(*args, **kwargs))

    return wrapper


def render_document(document: Mapping[str, Any]) -> RenderableType:
    """Render nested dicts for a terminal: pairs, small tables for lists of dicts, sections."""
    from rich.console import Group

    return Group(*_section(document))


def _section(document: Mapping[str, Any]) -> list[RenderableType]:
    """Return a dict as a table of its plain values, then each nested value under a title."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    pairs = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    pairs.add_column(no_wrap=True)
    pairs.add_column(overflow="fold")
    sections: list[RenderableType] = []
    for key, value in document.items():
        if is_unknown(value):
            continue
        if isinstance(value, dict):
            body: list[RenderableType] = _section(value)
        elif isinstance(value, list) and isinstance(value[0], dict):
            body = [_table(value)]
        else:
            pairs.add_row(Text(title_of(key), style="dim"), Text(format_field(key, value)))
            continue
        sections += [Text(""), Text(title_of(key), style="bold")]
        sections += [Padding(piece, (0, 0, 0, 2)) for piece in body]
    return [pairs, *sections] if pairs.row_count else sections


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    known = dict.fromkeys(name for row in rows for name in row if not is_unknown(row[name]))
    names = [name for name in known if _IMPLIED_BY.get(name) not in known]
    texts = [
        title_of(name)
        for name in names
        if not all(isinstance(row.get(name), int | float | None) for row in rows)
    ]
    cells = (
        [format_field(name, row.get(name)) for name in names] for row in rows if not is_unknown(row)
    )
    return render_columns([title_of(name) for name in names], cells, texts)


def render_columns(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Collection[str],
    bold: str | None = None,
) -> RenderableType:
    """Render cells as a table.

    Args:
        names: Of the columns.
        texts: Columns of text; the others are numbers, to the right.
        bold: The first cell of the most important row.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(Text(name), justify="left" if name in texts else "right", overflow="fold")
    for row in rows:
        style = "bold" if row[0] == bold else ""
        table.add_row(*map(Text, row), style=style)
    return table


_CELL_CHARS, _ROWS, _COLUMNS = 80, 60, 12


def cell(value: Any) -> str:
    """Return a value as escaped text."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    elif isinstance(value, bytes):
        value = f"{len(value):,} bytes"
    text = clean_message(str(value), _CELL_CHARS + 1)
    return escape(text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}\u2026")


def table_html(names: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """Return a table, cut at the limits."""
    head = "".join(f"<th>{cell(name)}</th>" for name in names[:_COLUMNS])
    shown = [row for _, row in zip(range(_ROWS), rows, strict=False)]
    body = "".join(
        f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row[:_COLUMNS])}</tr>"
        for row in shown
    )
    caption_html = f"<caption>{escape(clean_message(caption))}</caption>" if caption else ""
    return f"<table>{caption_html}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_html(title: str, facts: Mapping[str, Any]) -> str:
    """Return a title and a table of the names and values that are known."""
    rows = "".join(
        f"<tr><th>{cell(name)}</th><td>{cell(value)}</td></tr>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<h4>{cell(title)}</h4><table><tbody>{rows}</tbody></table>"


def document_html(title: str, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the plain values of a nested document as a table, then each section and list."""
    plain = {
        name.replace("_", " "): value
        for name, value in document.items()
        if not isinstance(value, dict | list)
    }
    if plain:
        yield facts_html(title, plain)
    for name, value in document.items():
        section_title = name.replace("_", " ")
        if isinstance(value, dict) and any(value.values()):
            yield from document_html(section_title, value)
        elif isinstance(value, list) and value:
            if isinstance(value[0], dict):
                names = list(dict.fromkeys(key for entry in value for key in entry))
                rows = [[entry.get(key) for key in names] for entry in value]
                yield table_html([key.replace("_", " ") for key in names], rows, section_title)
            else:
                yield facts_html(section_title, {section_title: ", ".join(map(str, value))})


def text_html(text: str) -> str:
    """Return printed lines, at most 200 with 200 characters each."""
    lines = (printable(line)[:200] for line in text.split("\n")[:200])
    shown = escape("\n".join(lines))
    return f"<pre>{shown}</pre>"
