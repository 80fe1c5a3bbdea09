"""Show any nested document as sections and tables of a terminal, as inspect and plan do.

Made for 80 columns: what is unknown is left out (`--json` has it, as null); nothing is cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report.showing.number_format import format_field, is_unknown, title_of

if TYPE_CHECKING:
    from rich.console import RenderableType


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
        bold: The first cell of the row that counts most.
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


_IMPLIED_BY = {"created_at": "run_id"}
"""Columns of a table that another one makes superfluous: a run id begins with its time."""
