"""Make text printable: names, values and messages may hold any bytes, and become one line.

This is the one place that decides which text may reach a terminal, a log or a page unchanged, and
how JSON represents values that it does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

MESSAGE_MAX_CHARS = 500


def printable(text: str) -> str:
    r"""Return text with each unprintable character escaped: one line, nothing hidden.

    Line breaks become `\n`, escape sequences `\x1b...`, marks that reverse the direction `\u202e`,
    bytes of a name that is not UTF-8 `\udcff`. Printable characters are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def joined(text: str) -> str:
    """Return text of several lines as one printable line, with single spaces between the words."""
    return printable(" ".join(text.split()))


def clean_message(text: str, max_chars: int = MESSAGE_MAX_CHARS) -> str:
    """Return text as one short printable line, so that log lines cannot be forged."""
    return joined(text)[:max_chars]


def listed(names: Iterable[str]) -> str:
    """List names of columns for a message; quote a name that is blank or has outer spaces."""
    return ", ".join(json.dumps(n) if n != n.strip() or not n else printable(n) for n in names)


def first_names(names: Iterable[str], most: int = 3) -> str:
    """List the first names, and the number of further names, for a message."""
    cleaned = [clean_message(name, 200) for name in names]
    num_more = len(cleaned) - most
    return ", ".join(cleaned[:most]) + (f" and {num_more} more" if num_more > 0 else "")


def num_of(count: int, noun: str) -> str:
    """Return a number with its noun: `1 row`, `12,345 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def json_value(value: Any, max_entries: int | None = None) -> Any:
    """Return a value that JSON can represent.

    Times, decimals, NaN and infinity become strings; bytes become their number.

    Args:
        value: Of any type, nested or not.
        max_entries: Most entries of a list to keep; None: all.
    """
    # numpy's numbers, without importing numpy; its times become strings below.
    if getattr(getattr(value, "dtype", None), "kind", None) in {*"biuf"} and not value.shape:
        value = value.item()
    if isinstance(value, Mapping):
        return {str(name): json_value(entry, max_entries) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry, max_entries) for entry in value[:max_entries]]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if value is None or isinstance(value, str | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def json_text(document: Any) -> str:
    """Return a document as one line of JSON, whatever values it holds."""
    return json.dumps(json_value(document), allow_nan=False)
