"""Compare two sets of detections of an image.

The detections of the reference, best first, each take the one of the same label on the other side
that overlaps them most, from `SAME_IOU` on (intersection over union), as COCO's evaluation matches
boxes. Both sides agree if such a pair overlaps by at least `NEAR_IOU` and its scores differ by at
most the limit, and if what has no partner would have been left out within the limit: its score is
that near to the least score which the other side writes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.models.agreement import Agreement, AgreementLimits

SAME_IOU = 0.5
"""Least overlap of two boxes of one label that are the same detection."""
NEAR_IOU = 0.9
"""Least overlap of the two boxes of one detection."""
SAME_PX = 0.5
"""Largest distance of the corners of one box, however small it is."""

Values = npt.NDArray[Any]


class Detections(NamedTuple):
    """D detections of one image, best first."""

    boxes: Values
    """float (D, 4): x_min, y_min, x_max, y_max."""
    scores: Values
    """float (D,)."""
    label_ids: Values
    """(D,): numbers or texts."""
    least: float
    """The least score that is written: `min_score`, or that of the last one if no more are
    written."""


class Pairs(NamedTuple):
    """Which detections of two sides are the same."""

    partner: Values
    """int (D,): place on the other side; -1: none."""
    iou: Values
    """float (D,): overlap with the partner; 0: none."""
    alone: Values
    """bool (E,): those of the other side without a partner."""


def match(reference: Detections, candidate: Detections) -> Pairs:
    """Match the D detections of a reference with the E of another side."""
    count, others = len(reference.scores), len(candidate.scores)
    partner, iou = np.full(count, -1), np.zeros(count)
    alone = np.ones(others, bool)
    if not others:
        return Pairs(partner, iou, alone)
    overlaps = overlap(reference.boxes[:, None], candidate.boxes[None])
    overlaps[reference.label_ids[:, None] != candidate.label_ids[None]] = 0.0
    for place in range(count):
        left = np.where(alone, overlaps[place], 0.0)
        nearest = int(left.argmax())
        if left[nearest] >= SAME_IOU:
            partner[place], iou[place], alone[nearest] = nearest, left[nearest], False
    return Pairs(partner, iou, alone)


def overlap(one: Values, other: Values) -> Values:
    """Return the intersection over the union of boxes, (..., 4) each, broadcast.

    Boxes with all corners within `SAME_PX` overlap wholly, also those with hardly an area.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = sides.clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    share = shared / np.where(union > 0, union, 1.0)
    return np.where((np.abs(one - other) <= SAME_PX).all(-1), 1.0, share)


def compare(
    reference: Detections, candidate: Detections, limits: AgreementLimits
) -> tuple[bool, float]:
    """Compare the detections of one image.

    Returns:
        Whether they agree, and by how much a score is off at most: of a detection without a partner
        by how much it exceeds what the other side leaves out.
    """
    if np.isnan(reference.scores).any() or np.isnan(candidate.scores).any():
        return False, float("nan")
    pairs = match(reference, candidate)
    has = pairs.partner >= 0
    off = [
        np.abs(reference.scores[has] - candidate.scores[pairs.partner[has]]),
        reference.scores[~has] - candidate.least,
        candidate.scores[pairs.alone] - reference.least,
    ]
    worst = float(np.concatenate(off).max(initial=0.0))
    is_near = bool((pairs.iou[has] >= NEAR_IOU).all())
    return is_near and worst <= limits.max_score_diff, worst


def compare_rows(
    reference: list[Detections], candidate: list[Detections], limits: AgreementLimits
) -> Agreement:
    """Compare the detections of N images."""
    compared = [compare(a, b, limits) for a, b in zip(reference, candidate, strict=True)]
    agrees = np.array([agreed for agreed, _ in compared], bool)
    return Agreement(agrees, float(np.max([off for _, off in compared])) if compared else 0.0)
