"""Detectors that tests name as factories, photos for them, and a plain loop to compare with.

The plain loop uses torchvision and the libraries of the models alone: per photo it decodes with
Pillow, turns the photo upright, resizes, runs the model, and puts boxes back onto the photo.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.ops import batched_nms, box_convert
from torchvision.transforms.v2 import functional as F

from pipeline.core.failures import failure_columns
from pipeline.core.schema import staged_schema
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.detection.boxes import corners
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits
from support.runs.jobs import job_of

LABELS = ["none", "cat", "dog"]
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
_ORIENTATION = 0x0112
_LIMITS = Limits(1 << 24, 1 << 24)


class YoloLike(nn.Module):
    """A head as that of YOLOv8, with seeded weights: float (B, 4 + K, P), a place per 8 px."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.head = nn.Conv2d(3, 4 + len(LABELS), 8, stride=8)
            nn.init.normal_(self.head.weight, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x - 0.5)
        height, width = features.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = torch.stack([x, y]) * 8 + 4 + 4 * torch.tanh(features[:, :2])
        sides = 24 * torch.sigmoid(features[:, 2:4]) + 4
        return torch.cat([centres, sides, torch.sigmoid(features[:, 4:])], dim=1).flatten(2)


def yolo_like() -> nn.Module:
    return YoloLike()


def decode() -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """Post-processing of `yolo_like` for the pipeline."""
    return lambda output: {
        "boxes": corners(output[:, :4].transpose(1, 2)),
        "scores": output[:, 4:].transpose(1, 2),
    }


class Seen(NamedTuple):
    """Detections of a photo, best first, in its pixels."""

    boxes: torch.Tensor
    scores: torch.Tensor
    label_ids: torch.Tensor


def yolo_boxes(output: torch.Tensor, iou: float) -> Seen:
    """Do by torchvision's operations what the pipeline does with `nms_iou`; found (4 + K, P)."""
    scores, label_ids = output[4:].max(dim=0)
    boxes = box_convert(output[:4].T, "cxcywh", "xyxy")
    kept = batched_nms(boxes, scores, label_ids, iou)
    return Seen(boxes[kept], scores[kept], label_ids[kept])


def photo(
    size_px: tuple[int, int], orientation: int, seed: int, *, blank: bool = False
) -> tuple[bytes, Image.Image]:
    """Return a JPEG and how it looks upright.

    Args:
        size_px: Width and height as it is stored.
        orientation: As EXIF has it, 1 to 8.
        seed: Of the picture.
        blank: Black all over, so that nothing is in it.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8) * (0 if blank else 1)
    image = Image.fromarray(coarse.astype(np.uint8)).resize(size_px, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    stored = Image.open(io.BytesIO(buffer.getvalue()))
    return buffer.getvalue(), ImageOps.exif_transpose(stored).convert("RGB")


def photos() -> list[tuple[bytes, Image.Image]]:
    """Return one photo of each orientation, of different sizes."""
    sizes = [(97, 61), (64, 120), (150, 100), (70, 70), (61, 97), (120, 64), (100, 150), (97, 61)]
    return [photo(size, index + 1, index) for index, size in enumerate(sizes)]


def spec_of(transform: Mapping[str, Any] | None, **model: Any) -> ModelSpec:
    job = job_of({"task": "detect", **model}, transform=transform or {})
    return resolve_model(job, ["support"])


def rows_of(data: Sequence[bytes]) -> pa.Table:
    names = [f"r{index}" for index in range(len(data))]
    return pa.table(
        {
            "row_id": names,
            "uri": names,
            "image": pa.array(data, pa.large_binary()),
            **failure_columns([None] * len(data)),
        }
    )


def detections(spec: ModelSpec, data: Sequence[bytes], batch_size: int = 4) -> list[dict[str, Any]]:
    """Return the rows that the pipeline makes of encoded photos."""
    prepared = spec.input.prepare(rows_of(data), {}, _LIMITS)
    empty = pa.schema([])
    config = PredictorConfig(
        spec=spec, batch_size=batch_size, num_gpus=0, num_threads=1, pass_through=empty
    )
    predictions = TorchEngine(config).predict(prepared, {})
    assert predictions.schema == staged_schema([], spec.output_fields())
    predictions.validate(full=True)
    return predictions.to_pylist()


class Fitted(NamedTuple):
    """A photo as model input, and where it lies in it."""

    pixels: torch.Tensor
    """float (3, H, W) in [0, 1]."""
    scale: tuple[float, float]
    """Of x and y."""
    offset: tuple[float, float]


def fit(image: Image.Image, transform: Mapping[str, Any]) -> Fitted:
    """Resize a photo by torchvision alone."""
    pixels = F.pil_to_tensor(image)
    height, width = pixels.shape[-2:]
    size, resize = transform.get("size_px"), transform.get("resize", "shortest")
    if resize == "shortest":
        resized = F.resize(pixels, [transform["resize_px"]], antialias=True)
    elif resize == "stretch":
        resized = F.resize(pixels, [size, size], antialias=True)
    elif resize == "pad":
        ratio = max(height, width) / size
        resized = F.resize(pixels, [round(height / ratio), round(width / ratio)], antialias=True)
    else:
        resized = pixels
    new_height, new_width = resized.shape[-2:]
    left = top = 0
    if size is not None:
        left, top = (size - new_width) / 2, (size - new_height) / 2
        left, top = (int(x) if x > 0 else -round(-x) for x in (left, top))
        resized = F.center_crop(F.pad(resized, [max(0, left), max(0, top)]), [size, size])
    return Fitted(resized / 255, (new_width / width, new_height / height), (left, top))


def on_photo(seen: Seen, fitted: Fitted, image: Image.Image, min_score: float) -> Seen:
    """Put boxes back onto the photo, clip them to it, and leave out low scores."""
    scale, offset = torch.tensor([*fitted.scale] * 2), torch.tensor([*fitted.offset] * 2)
    most = torch.tensor([*image.size] * 2).float()
    boxes = torch.minimum(((seen.boxes - offset) / scale).clamp(min=0), most)
    order = seen.scores.argsort(descending=True, stable=True)
    kept = order[seen.scores[order] >= min_score]
    return Seen(boxes[kept], seen.scores[kept], seen.label_ids[kept])
