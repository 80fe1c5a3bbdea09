"""The places of a prompt: names of columns in braces."""

from __future__ import annotations

import re

TEXT_NAME = "text"
"""Stands for `source.text_column`, whatever its name is."""
_PLACE = re.compile(r"\{(\{[^\W\d][\w.]*\})\}|\{([^\W\d][\w.]*)\}")


def parts_of(prompt: str) -> list[str]:
    """Split a prompt at its places.

    Returns:
        What stands before, between and behind them, and at odd indices the names. Of doubled braces
        `{{name}}` one pair remains, and it is no place.
    """
    parts, end = [""], 0
    for place in _PLACE.finditer(prompt):
        constant, name = place.groups()
        parts[-1] += prompt[end : place.start()] + (constant or "")
        parts += [name, ""] if name else []
        end = place.end()
    parts[-1] += prompt[end:]
    return parts
