"""Boxes on the device: outputs of detectors as candidates, suppression, the best of many.

Accepted outputs are a list with a dict of `boxes`, `scores`, `labels` per row (torchvision); a
mapping of `logits` and `pred_boxes` (transformers); a mapping of `boxes`, `scores` and label ids.

Plain torch, so that actors need no torchvision, whose import takes longer than a second. Boxes are
corners: x_min, y_min, x_max, y_max. A post-processing step of one's own may use `corners`.

Nothing here asks a GPU for a value, which would wait for all that is queued on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pipeline.models.outputs import OutputError, require

Px = tuple[int, int]
"""Height and width of the model input."""

_SAYS = (
    "expected per row a dict of boxes, scores and labels; or tensors boxes (B, Q, 4), scores "
    "(B, Q) and label_ids (B, Q), or scores (B, Q, labels); or logits and pred_boxes; for anything "
    "else name a model.postprocess that returns one of these"
)
_BOX = 4
_NAMES = ("boxes", "scores", "labels")


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
        candidates: Candidates of B rows. A score that is NaN stays in front, so that its row fails.
        min_score: From which score on a detection counts.
        most: M, the most of a row.
        nms_iou: Leave out those that a better one of the same label overlaps by more than this.

    Returns:
        Boxes float32 (B, M, 4) or (B, M, D), scores float32 (B, M), label ids int32 (B, M); zeros
        behind the last detection of a row.
    """
    scores = candidates.scores.float()
    # In the type of the scores, so that float32 0.1 reaches 0.1.
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
    """Tell whether values can be read without waiting for a GPU."""
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


def candidates(outputs: Any, num_rows: int, num_labels: int, px: Px | None) -> Candidates:
    """Read the outputs of a detector.

    Args:
        outputs: On the device.
        num_rows: B.
        num_labels: K, the class names of the job or the model.
        px: Size of the model input, to scale `pred_boxes`; None: unknown.

    Raises:
        OutputError: They have none of the forms, or other shapes.
    """
    if isinstance(outputs, list | tuple) and all(isinstance(row, Mapping) for row in outputs):
        return _of_rows(outputs, num_rows)
    if not isinstance(outputs, Mapping):
        shown = tuple(getattr(outputs, "shape", ())) or type(outputs).__name__
        raise OutputError(f"output is {shown}; {_SAYS}")
    if "pred_boxes" in outputs and "logits" in outputs:
        return _of_queries(outputs["logits"], outputs["pred_boxes"], num_rows, num_labels, px)
    if "boxes" not in outputs or "scores" not in outputs:
        raise OutputError(f"the outputs are {', '.join(map(str, outputs))}; {_SAYS}")
    return _of_tensors(outputs, num_rows, num_labels)


def split_head(output: Any, head: str, num_rows: int, num_labels: int) -> dict[str, torch.Tensor]:
    """Split the only output of a detector of ultralytics into boxes and scores.

    Args:
        output: In pixels of the model input. `places`: (B, 4 + K, P), centre, width, height and a
            score of each label; `rows`: (B, M, 6), corners, score and label.
        head: `places` or `rows`.

    Raises:
        OutputError: It has another shape.
    """
    length, width = tuple(output.shape[1:]) if _is_tensor(output, 3) else (0, 0)
    if head == "rows":
        rows = require(output, (num_rows, length, _BOX + 2), "", "corners, score and label")
        return {"boxes": rows[..., :_BOX], "scores": rows[..., _BOX], "labels": rows[..., -1]}
    places = require(
        output, (num_rows, _BOX + num_labels, width), "", "a box, and a score of each label"
    )
    places = places.transpose(1, 2)
    return {"boxes": corners(places[..., :_BOX].float()), "scores": places[..., _BOX:]}


def _of_rows(outputs: Sequence[Mapping[str, Any]], num_rows: int) -> Candidates:
    if len(outputs) != num_rows:
        raise OutputError(f"output has {len(outputs)} dicts for {num_rows} rows; {_SAYS}")
    for row in outputs:
        missing = [name for name in _NAMES if name not in row]
        if missing:
            raise OutputError(f"the dicts have no {missing[0]}, but {', '.join(row)}; {_SAYS}")
        size = len(row["scores"])
        for name, shape in (("boxes", (size, _BOX)), ("scores", (size,)), ("labels", (size,))):
            require(row[name], shape, "", name)
    boxes, scores, labels = (padded([row[name] for row in outputs]) for name in _NAMES)
    return Candidates(boxes, scores, labels)


def padded(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return B tensors (n, ...) as one (B, P, ...), filled with zeros behind the last."""
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def _of_queries(
    logits: Any, boxes: Any, num_rows: int, num_labels: int, px: Px | None
) -> Candidates:
    """Read the outputs of DETR and similar models as the library's own post-processing does.

    With one logit more than labels the last means `nothing`: softmax, and one label per query.
    Otherwise sigmoid, and each pair of query and label is a candidate.
    """
    if px is None:
        raise OutputError("pred_boxes are shares of an image, and the rows are no images")
    queries, num_logits = tuple(logits.shape[1:]) if _is_tensor(logits, 3) else (0, 0)
    has_nothing = num_logits == num_labels + 1
    shape = (num_rows, queries, num_labels + has_nothing)
    require(logits, shape, "", "logits, one per label of model.labels")
    require(boxes, (num_rows, queries, _BOX), "", "pred_boxes")
    logits = logits.float()
    height, width = px
    in_px = corners(boxes.float())
    in_px[..., 0::2].mul_(width)
    in_px[..., 1::2].mul_(height)
    if has_nothing:
        scores, label_ids = torch.softmax(logits, dim=2)[..., :-1].max(dim=2)
        # Softmax keeps NaN, and turns infinity into NaN.
        return Candidates(in_px, scores, label_ids)
    # The sigmoid of infinity would be 1, and the row would pass for a good one.
    scores = torch.where(logits.isfinite(), torch.sigmoid(logits), torch.nan).flatten(1)
    places = torch.arange(scores.shape[1], device=scores.device).expand(num_rows, -1)
    return Candidates(in_px, scores, places % num_labels, places // num_labels)


def _of_tensors(outputs: Mapping[str, Any], num_rows: int, num_labels: int) -> Candidates:
    boxes, scores = outputs["boxes"], outputs["scores"]
    size = int(boxes.shape[1]) if _is_tensor(boxes, 3) else 0
    require(boxes, (num_rows, size, _BOX), "", "boxes")
    if _is_tensor(scores, 3):
        shape = (num_rows, size, num_labels)
        require(scores, shape, "", "scores, one per label of model.labels")
        scores, label_ids = scores.max(dim=2)
        return Candidates(boxes, scores, label_ids)
    require(scores, (num_rows, size), "", "scores")
    label_ids = outputs.get("label_ids", outputs.get("labels"))
    if label_ids is None:
        raise OutputError(f"the outputs are {', '.join(map(str, outputs))}; {_SAYS}")
    require(label_ids, (num_rows, size), "", "label_ids")
    return Candidates(boxes, scores, label_ids.long())


def _is_tensor(value: Any, rank: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == rank
