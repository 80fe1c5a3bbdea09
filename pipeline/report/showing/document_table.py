"""Show any nested document as sections and tables of a terminal, as inspect and plan do.

Made for 80 columns: what is unknown is left out (`--json` has it, as null); nothing is cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.core.printable import printable
from pipeline.report.showing.number_format import UNKNOWN, format_count, format_size

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType


def render_document(document: dict[str, Any]) -> RenderableType:
    """Render nested dicts for a terminal: pairs, small tables for lists of dicts, sections."""
    from rich.console import Group

    return Group(*_section(document))


def _section(document: dict[str, Any]) -> list[RenderableType]:
    """Return a dict as a table of its plain values, then each nested value under a title."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    pairs = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    pairs.add_column(no_wrap=True)
    pairs.add_column(overflow="fold")
    sections: list[RenderableType] = []
    for key, value in document.items():
        if _is_unknown(value):
            continue
        if isinstance(value, dict):
            body: list[RenderableType] = _section(value)
        elif isinstance(value, list) and isinstance(value[0], dict):
            body = [_table(value)]
        else:
            pairs.add_row(Text(_title(key), style="dim"), Text(_show(key, value)))
            continue
        sections += [Text(""), Text(_title(key), style="bold")]
        sections += [Padding(piece, (0, 0, 0, 2)) for piece in body]
    return [pairs, *sections] if pairs.row_count else sections


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    known = dict.fromkeys(name for row in rows for name in row if not _is_unknown(row[name]))
    names = [name for name in known if _TOLD_BY.get(name) not in known]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        side: JustifyMethod = "right" if numeric else "left"
        table.add_column(Text(_title(name)), justify=side, overflow="fold")
    for row in rows:
        if _is_unknown(row):
            continue
        table.add_row(*(Text(_show(name, row.get(name))) for name in names))
    return table


_TOLD_BY = {"created_at": "run_id"}
"""Columns of a table that another one makes superfluous: a run id begins with its time."""


def _is_unknown(value: Any) -> bool:
    """Tell whether there is nothing to show: null, empty, or a section or list of such values."""
    if isinstance(value, dict):
        return all(map(_is_unknown, value.values()))
    if isinstance(value, list):
        return all(map(_is_unknown, value))
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def _title(key: str) -> str:
    return printable(key.replace("_", " "))


def _show(key: str, value: Any) -> str:
    if _is_unknown(value):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_size(value) if key.endswith("bytes") else format_count(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_show(key, item) for item in value)
    return printable(str(value))
