"""Numbers and fields as people read them; what is unknown is a dash."""

from __future__ import annotations

import math
from typing import Any

from pipeline.core.printable import printable

UNKNOWN = "-"


def is_unknown(value: Any) -> bool:
    """Tell whether there is nothing to show: null, empty, or a section or list of such values."""
    if isinstance(value, dict):
        return all(map(is_unknown, value.values()))
    if isinstance(value, list):
        return all(map(is_unknown, value))
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def title_of(field: str) -> str:
    """Return the name of a field as words: `rows/s` of `rows_per_s`, and `used` of `used_pct`."""
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
    """Return a whole number: `12,345`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_plain(value: float | None) -> str:
    """Return a number as short as it goes: `0.5`."""
    return UNKNOWN if value is None else f"{value:g}"


def format_rate(value: float | None) -> str:
    """Return a rate, three digits at least: `12,345` or `1.23`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_pct(value: float | None) -> str:
    """Return a percentage: `12.3%`."""
    return UNKNOWN if value is None else f"{value:.1f}%"


def format_duration(value_s: float | None) -> str:
    """Return seconds: `12.3 s`, `2 min 03 s` or `1 h 02 min`."""
    if value_s is None:
        return UNKNOWN
    if round(value_s, 1) < 60:
        return f"{value_s:.1f} s"
    minutes, seconds = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def duration(seconds: float) -> str:
    """Return whole seconds: `12 s`, `2 min 03 s` or `1 h 02 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


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
