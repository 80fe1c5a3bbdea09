"""What detectors return, in any of their forms, as candidates.

Accepted are a list with a dict of `boxes`, `scores`, `labels` per row (torchvision); a mapping of
`logits` and `pred_boxes` (object detection of transformers); a mapping of `boxes`, `scores` and
`label_ids` or `labels`, padded. Other outputs, such as masks, are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.models.detection.boxes import Candidates, corners
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


def candidates(outputs: Any, num_rows: int, num_labels: int, px: Px | None) -> Candidates:
    """Read the outputs of a detector.

    Args:
        outputs: On the device.
        num_rows: B.
        num_labels: K, the class names of the job or the model.
        px: Size of the model input, of which `pred_boxes` are shares; None: unknown.

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
    """Read the outputs of a DETR or one of its kin, as the library's own post-processing does.

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
        # Softmax keeps NaN, and makes it of infinity.
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
