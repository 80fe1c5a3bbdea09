"""The output of a YOLOv8 head as boxes and scores, for files without ultralytics' metadata.

A job names it as `model.postprocess: yolo_head:decode`, with `labels`, `nms_iou` and the transform
`{size_px: 320, resize: pad, pad_value: 114, interpolation: bilinear-plain, mean: [0, 0, 0],
std: [1, 1, 1]}`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.models.detection.boxes import corners

Boxes = dict[str, torch.Tensor]


def decode() -> Callable[[torch.Tensor], Boxes]:
    """Return the step that the pipeline calls with the model's output, on the model's device."""
    return boxes_and_scores


def boxes_and_scores(output: torch.Tensor) -> Boxes:
    """Split the output of a head.

    Args:
        output: (B, 4 + K, P): of P places in the picture the centre, width and height of a box, in
            pixels of the model input, and the score of each of K labels.

    Returns:
        `boxes` (B, P, 4), corners, and `scores` (B, P, K). The best label of each box, the least
        score and the suppression of overlapping boxes are the job's: min_score, nms_iou.
    """
    boxes, scores = output.transpose(1, 2).split([4, output.shape[1] - 4], dim=2)
    return {"boxes": corners(boxes), "scores": scores}
