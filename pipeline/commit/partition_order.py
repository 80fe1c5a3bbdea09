"""The order of partitions of one key: by date or number if their names hold one."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ORDERED = re.compile(r"\d[\d:._TZ-]*")


def earlier_names(name: str, names: Sequence[str]) -> list[str]:
    """Return the partitions of the same key before this one, the last first."""
    key, _, value = name.partition("=")
    if not _ORDERED.fullmatch(value):
        return []
    this = _order(value)
    values = [other.partition("=")[2] for other in names if other.startswith(f"{key}=")]
    earlier = [v for v in values if _ORDERED.fullmatch(v) and _order(v) < this]
    return [f"{key}={v}" for v in sorted(earlier, key=_order, reverse=True)]


def partition_order(name: str) -> tuple[bool, tuple[int, ...], str]:
    """Return a key that sorts partitions by date or number, and those that have none before them.

    A name without an order sorts by its letters.
    """
    value = name.partition("=")[2]
    is_ordered = _ORDERED.fullmatch(value) is not None
    return is_ordered, _order(value) if is_ordered else (), name


def _order(value: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", value)))
