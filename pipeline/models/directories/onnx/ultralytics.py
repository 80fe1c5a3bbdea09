"""Facts of .onnx files of ultralytics: its exporter says in the metadata what the graph is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.models.directories.facts import ImageContract, TensorFacts
from pipeline.models.directories.onnx.classes import literal
from pipeline.models.tasks.base import Head
from pipeline.preprocessing.images.transform import TransformSpec

_AUTHOR = "Ultralytics"
_GRAY = 114
_BOX = 4
_OF_ROWS = 6
"""Corners, score and label of a detection."""
_MAX_SIDE_PX = 16_384


@dataclass(frozen=True)
class Exported:
    """What the metadata says; '' and None if it is not of ultralytics, or not of a detector."""

    head: Head = ""
    """How the output has boxes."""
    no_boxes: str = ""
    """What the output is instead."""
    transform: TransformSpec | None = None


def read_metadata(
    metadata: Mapping[str, str],
    labels: Sequence[str] | None,
    images: ImageContract,
    outputs: Sequence[TensorFacts],
) -> Exported:
    """Read what a file of images says.

    Args:
        labels: The class names in its metadata.
        images: What the input takes.
        outputs: Those that are numbers.
    """
    count, shape = len(labels or ()), outputs[0].shape or ()
    if metadata.get("author") != _AUTHOR:
        if count and len(shape) == 3 and shape[2] == _BOX + 1 + count:
            return Exported(no_boxes=f"has objectness beside {count} scores, as YOLOv5's")
        return Exported()
    task = metadata.get("task", "")
    if task == "classify":
        return Exported(transform=_transform(metadata, images, is_padded=False))
    if task != "detect":
        return Exported(no_boxes=f"is of ultralytics' task {task!r:.40}, not 'detect'")
    head = _head(metadata, count, shape) if len(outputs) == 1 and len(shape) == 3 else ""
    if not head:
        return Exported(no_boxes=f"is no (B, 4 + {count}, N) or (B, N, 6) as ultralytics' YOLO has")
    return Exported(head, transform=_transform(metadata, images, is_padded=True))


def _head(metadata: Mapping[str, str], count: int, shape: Sequence[object]) -> Head:
    """Return the layout of an output; '' if it is unknown, as that of RT-DETR is, (B, N, 4 + K)."""
    if not count or metadata.get("head") == "RTDETRDecoder":
        return ""
    arguments = literal(metadata.get("args", ""))
    suppresses = isinstance(arguments, dict) and arguments.get("nms") is True
    is_final = suppresses or metadata.get("end2end") == "True"
    _, length, width = shape
    if is_final or (width == _OF_ROWS and count != _OF_ROWS - _BOX):
        return "rows" if width == _OF_ROWS or not isinstance(width, int) else ""
    is_unknown = not isinstance(length, int)
    return "places" if (length == _BOX + count or is_unknown) and width != _BOX + count else ""


def _transform(
    metadata: Mapping[str, str], images: ImageContract, *, is_padded: bool
) -> TransformSpec | None:
    """Return a letterbox, or the resize and crop of classifiers; None if no size is known."""
    size = literal(metadata.get("imgsz", ""))
    size = [size, size] if isinstance(size, int) else size
    if not isinstance(size, list) or len(size) != 2:
        size = (None, None)
    known = (images.height_px or size[0], images.width_px or size[1])
    if not all(isinstance(side, int) and 0 < side <= _MAX_SIDE_PX for side in known):
        return None
    if not is_padded and known[0] != known[1]:
        return None
    is_gray = images.num_channels == 1
    return TransformSpec(
        size_px=known,
        resize_px=None if is_padded else max(known),
        # Detectors are resized by OpenCV, classifiers by torchvision.
        interpolation="bilinear-plain" if is_padded else "bilinear",
        mean=(0.0,) if is_gray else (0.0,) * 3,
        std=(1.0,) if is_gray else (1.0,) * 3,
        resize="pad" if is_padded else "shortest",
        pad_value=_GRAY if is_padded else 0,
        channels="gray" if is_gray else "rgb",
    )
