"""Match the entries of two lists of one row: labels, entities, boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.schema import END, LABEL, SCORE, START
from pipeline.models.tasks.detect import CORNERS

MIN_IOU = 0.5
"""Boxes of one label that overlap at least as much are one detection (as PASCAL VOC has it)."""

Entry = Mapping[str, Any]


def match_entries(
    before: Sequence[Entry], now: Sequence[Entry]
) -> tuple[list[tuple[Entry, Entry]], list[Entry], list[Entry]]:
    """Pair the entries of a row: boxes by label and overlap, others by label and place in the text.

    Boxes are paired greedily, the best overlap first.

    Returns:
        Pairs, entries that are gone, entries that are new.
    """
    if any(all(name in entry for name in CORNERS) for entry in (*before, *now)):
        return _match_boxes(before, now)
    left: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in before:
        left.setdefault(_place(entry), []).append(entry)
    pairs, new = list[tuple[Entry, Entry]](), list[Entry]()
    for entry in now:
        known = left.get(_place(entry))
        if known:
            pairs.append((known.pop(0), entry))
        else:
            new.append(entry)
    return pairs, [entry for some in left.values() for entry in some], new


def score_of(entry: Entry) -> float:
    """Return the score of an entry; 0 if it has none."""
    return float(entry.get(SCORE) or 0.0)


def iou(one: Entry, other: Entry) -> float:
    """Return the intersection over union of two boxes; 0 if both are empty."""
    sides = [
        (max(one[low], other[low]), min(one[high], other[high]))
        for low, high in (CORNERS[0::2], CORNERS[1::2])
    ]
    shared = max(0.0, sides[0][1] - sides[0][0]) * max(0.0, sides[1][1] - sides[1][0])
    union = _area(one) + _area(other) - shared
    return float(shared / union) if union > 0 else 0.0


def _area(entry: Entry) -> float:
    return float((entry["x_max"] - entry["x_min"]) * (entry["y_max"] - entry["y_min"]))


def _place(entry: Entry) -> tuple[Any, ...]:
    """Return what tells an entry from the others of its row."""
    names = [name for name in (LABEL, START, END) if name in entry]
    if names:
        return tuple(entry[name] for name in names)
    return tuple((name, str(value)) for name, value in entry.items() if name != SCORE)


def _match_boxes(
    before: Sequence[Entry], now: Sequence[Entry]
) -> tuple[list[tuple[Entry, Entry]], list[Entry], list[Entry]]:
    overlaps = sorted(
        (
            (-overlap, a, b)
            for a, one in enumerate(before)
            for b, other in enumerate(now)
            if one[LABEL] == other[LABEL] and (overlap := iou(one, other)) >= MIN_IOU
        )
    )
    found: dict[int, int] = {}
    for _, a, b in overlaps:
        if a not in found and b not in found.values():
            found[a] = b
    used = set(found.values())
    return (
        [(before[a], now[b]) for a, b in found.items()],
        [entry for a, entry in enumerate(before) if a not in found],
        [entry for b, entry in enumerate(now) if b not in used],
    )
