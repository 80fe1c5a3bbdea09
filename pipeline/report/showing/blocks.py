"""Blocks of a report for people: lines, facts, tables, and the numbers in them.

Terminal and page render the same blocks, and escape their texts; here nothing is escaped. What is
unknown is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from pipeline.core.printable import printable

UNKNOWN = "-"
_HIGH_PX, _EDGE_PX = 28.0, 3.0


@dataclass(frozen=True)
class Bar:
    """A share as a bar, with a dark line across it."""

    pct: float | None
    mark_pct: float | None = None


@dataclass(frozen=True)
class Line:
    """One figure over versions or time, as texts."""

    name: str
    num_points: int
    last: str
    low: str
    high: str
    points: str
    """Points of a polyline in a box of 100 x 28; an unknown value has none."""


Cell = str | Bar | Line


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its name."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Sequence[str] = ()
    """Columns of text; the others are numbers or pictures."""
    limit: str | None = None
    """First cell of the row that held the run back."""
    narrow: Sequence[str] = ()
    """Columns for a terminal, in order; none if the table is only for the page."""


@dataclass(frozen=True)
class Block:
    """A titled piece of the report."""

    title: str = ""
    lines: Sequence[str] = ()
    """Lines for terminal and page."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Name -> value, for the page."""
    table: Table | None = None
    note: str = ""
    """Text below the table, for the page."""

    def __bool__(self) -> bool:
        return bool(self.lines or self.facts or (self.table and self.table.rows))


def facts_of(section: BaseModel | Mapping[str, Any] | None) -> dict[str, str]:
    """Return the fields of a section that are known and neither sections nor lists of them."""
    return {
        title_of(name): format_field(name, value)
        for name, value in dict(section or {}).items()
        if not is_unknown(value) and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    return not isinstance(value[0] if isinstance(value, list) else value, BaseModel | dict)


def table_of(
    rows: Sequence[BaseModel], bar: Callable[[Any], Bar] | None = None, limit: str | None = None
) -> Table:
    """Return sections of one type as rows, their fields as columns, without unknown columns.

    Args:
        rows: The first field of each is its name.
        bar: Makes the bar at the end of a row.
        limit: Name of the row that held the run back.
    """
    known = dict.fromkeys(name for row in rows for name, value in row if not is_unknown(value))
    texts = [title_of(name) for name in known if isinstance(_first(rows, name), str | list)]
    return Table(
        [*map(title_of, known), *([""] if bar else [])],
        [
            [
                *(format_field(name, getattr(row, name)) for name in known),
                *([bar(row)] if bar else []),
            ]
            for row in rows
        ],
        texts,
        limit,
    )


def _first(rows: Sequence[BaseModel], name: str) -> Any:
    return next(value for row in rows if not is_unknown(value := getattr(row, name)))


def lines_block(title: str, lines: Sequence[Line]) -> Block:
    """Return small lines as a table."""
    rows = [(line.name, line.last, f"{line.low} to {line.high}", line) for line in lines]
    named = title.format(lines[0].num_points) if lines else title
    return Block(named, table=Table(("", "last", "range", ""), rows))


def line_of(
    name: str, values: Sequence[float | None], format_value: Callable[[float], str]
) -> Line | None:
    """Return a line; None if fewer than two values are known."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    low, high, step = min(known), max(known), 100 / (len(values) - 1)
    inside = (_HIGH_PX - 2 * _EDGE_PX) / ((high - low) or 1.0)
    points = " ".join(
        f"{number * step:.1f},{_HIGH_PX - _EDGE_PX - inside * (value - low):.1f}"
        for number, value in enumerate(values)
        if value is not None
    )
    return Line(
        name, len(values), format_value(known[-1]), format_value(low), format_value(high), points
    )


def is_unknown(value: Any) -> bool:
    """Tell whether a value is null, empty, not finite, or holds only such values."""
    if isinstance(value, dict):
        return all(map(is_unknown, value.values()))
    if isinstance(value, list):
        return all(map(is_unknown, value))
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def title_of(field: str) -> str:
    """Return the name of a field as words: `rows/s` for `rows_per_s`, `used` for `used_pct`."""
    words = field if "_per_" in field else field.removesuffix("_s").removesuffix("_pct")
    return printable(words.replace("_per_", "/").replace("_", " "))


def format_field(field: str, value: Any) -> str:
    """Return the value of a field, by its type and the unit at the end of its name."""
    if is_unknown(value):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_size(value) if field.endswith("bytes") else format_count(value)
    if isinstance(value, float):
        if "_per_" in field:
            return format_rate(value)
        if field.endswith("_s"):
            return format_duration(value)
        return f"{value:.4g}%" if field.endswith("_pct") else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(format_field(field, item) for item in value)
    return printable(str(value))


def format_count(value: float | None) -> str:
    """Return an integer: `12,345`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_plain(value: float | None) -> str:
    """Return a number in its shortest form: `0.5`."""
    return UNKNOWN if value is None else f"{value:g}"


def format_rate(value: float | None) -> str:
    """Return a rate with at least three digits: `12,345` or `1.23`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_pct(value: float | None) -> str:
    """Return a percentage: `12.3%`."""
    return UNKNOWN if value is None else f"{value:.1f}%"


def format_duration(value_s: float | None, digits: int = 1) -> str:
    """Return seconds: `12.3 s`, or `12 s` without digits; `2 min 03 s` or `1 h 02 min`."""
    if value_s is None:
        return UNKNOWN
    if round(value_s, digits) < 60:
        return f"{value_s:.{digits}f} s"
    minutes, seconds = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def format_mib(amount_bytes: float | None, over_s: float | None) -> str:
    """Return MiB/s, without the unit."""
    return (
        UNKNOWN if amount_bytes is None or not over_s else f"{amount_bytes / over_s / 2**20:,.1f}"
    )


def format_size(value_bytes: float | None) -> str:
    """Return bytes in the unit that fits: `1.5 GiB`."""
    if value_bytes is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(value_bytes, 1) < 1024:
            return f"{value_bytes:.0f} B" if unit == "B" else f"{value_bytes:.1f} {unit}"
        value_bytes /= 1024
    return f"{value_bytes:.1f} TiB"
