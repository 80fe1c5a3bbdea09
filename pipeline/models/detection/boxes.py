"""Boxes on the device: shares of a union, non-maximum suppression, the best of many.

Plain torch, so that actors need no torchvision, whose import takes longer than a second. Boxes are
corners: x_min, y_min, x_max, y_max. A post-processing step of one's own may use `corners`.

Nothing here asks a GPU for a value, which would wait for all that is queued on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Candidates(NamedTuple):
    """P possible detections of each of B rows, in any order."""

    boxes: torch.Tensor
    """float (B, Q, 4), pixels of the model input; or other numbers of each, (B, Q, D)."""
    scores: torch.Tensor
    """float (B, P); 0: none."""
    label_ids: torch.Tensor
    """Integers (B, P)."""
    box_of: torch.Tensor | None = None
    """Integers (B, P): which of the Q boxes each has; None: P is Q, and they are in order."""


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Return the corners of boxes that are given by their centre, (..., 4): x, y, width, height."""
    x, y, width, height = boxes.unbind(-1)
    sides = [x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height]
    return torch.stack(sides, dim=-1)


def overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the intersection over the union of boxes, (..., 4) each, broadcast; 0 / 0 is NaN."""
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(
        one[..., :2], other[..., :2]
    )
    shared = sides.clamp(min=0).prod(-1)
    return shared / (_area(one) + _area(other) - shared)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def best(
    candidates: Candidates, min_score: float, most: int, nms_iou: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose the detections that are written, best first.

    Args:
        candidates: Of B rows. A score that is NaN stays, in front, so that its row is found.
        min_score: From which score on a detection counts.
        most: M, the most of a row.
        nms_iou: Leave out those that a better one of the same label overlaps by more than this.

    Returns:
        Boxes float32 (B, M, 4) or (B, M, D), scores float32 (B, M), label ids int32 (B, M); zeros
        behind the last detection of a row.
    """
    scores = candidates.scores.float()
    # Least in the type of the scores, so that 0.1 is reached by float32 0.1.
    least = torch.full((), min_score, dtype=scores.dtype, device=scores.device)
    counts = ~((scores < least) | (scores <= 0))
    order = torch.where(counts, scores, -torch.inf).sort(dim=1, descending=True, stable=True)
    num_ranked = most
    if nms_iou is not None:
        num_ranked = counts.shape[1]
        if num_ranked and is_on_host(counts):
            num_ranked = int(counts.sum(1).amax())
    ranked = order.indices[:, :num_ranked]
    counts, scores = counts.gather(1, ranked), scores.gather(1, ranked)
    label_ids = candidates.label_ids.gather(1, ranked)
    places = ranked if candidates.box_of is None else candidates.box_of.gather(1, ranked)
    boxes = _rows_of(candidates.boxes.float(), places)
    if nms_iou is not None:
        counts = kept_by_nms(boxes, label_ids, counts, nms_iou, most)
        first = (~counts).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
        counts, scores = counts.gather(1, first), scores.gather(1, first)
        label_ids = label_ids.gather(1, first)
        boxes = _rows_of(boxes, first)
    missing = (0, most - counts.shape[1])
    return (
        torch.nn.functional.pad(torch.where(counts[..., None], boxes, 0), (0, 0, *missing)),
        torch.nn.functional.pad(torch.where(counts, scores, 0), missing),
        torch.nn.functional.pad(torch.where(counts, label_ids, 0).to(torch.int32), missing),
    )


def is_on_host(values: torch.Tensor) -> bool:
    """Tell whether to look at values costs no wait, so that needless work can be left out."""
    return values.device.type == "cpu"


def _rows_of(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return (B, P, D) of values (B, Q, D) at places (B, P)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def kept_by_nms(
    boxes: torch.Tensor, label_ids: torch.Tensor, counts: torch.Tensor, iou: float, most: int
) -> torch.Tensor:
    """Return which boxes greedy non-maximum suppression keeps, as torchvision's `batched_nms`.

    Args:
        boxes: (B, P, 4), the best first.
        label_ids: (B, P); boxes of other labels do not suppress each other.
        counts: bool (B, P): those that take part.
        iou: Boxes that overlap by more than this are suppressed.
        most: Stop after so many per row.

    Returns:
        bool (B, P).
    """
    left, kept = counts.clone(), torch.zeros_like(counts)
    rows = torch.arange(len(counts), device=counts.device)
    for _ in range(min(most, counts.shape[1])):
        has = left.any(dim=1)
        if is_on_host(has) and not has.any():
            break
        first = left.to(torch.uint8).argmax(dim=1)
        kept[rows, first] |= has
        near = overlap(boxes[rows, first][:, None], boxes) > iou
        left &= ~(near & (label_ids == label_ids[rows, first][:, None]))
        left[rows, first] = False
    return kept
