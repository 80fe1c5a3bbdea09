"""Show any nested document as sections and tables of a terminal, as inspect and plan do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.core.printable import printable
from pipeline.report.number_format import UNKNOWN, format_count, format_size

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType


def render_document(document: dict[str, Any]) -> RenderableType:
    """Render nested dicts for a terminal: pairs, small tables for lists of dicts, sections."""
    from rich.console import Group

    return Group(*_section(document))


def _section(document: dict[str, Any]) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    pairs = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    pairs.add_column(no_wrap=True)
    pairs.add_column(overflow="fold")
    sections: list[RenderableType] = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            body: list[RenderableType] = _section(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
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

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        side: JustifyMethod = "right" if numeric else "left"
        table.add_column(Text(_title(name)), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_show(name, row.get(name))) for name in names))
    return table


def _title(key: str) -> str:
    return printable(key.replace("_", " "))


def _show(key: str, value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_size(value) if key.endswith("bytes") else format_count(value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else UNKNOWN
    if isinstance(value, list):
        return ", ".join(_show(key, item) for item in value)
    return printable(str(value))
