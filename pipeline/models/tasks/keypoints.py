"""Task `keypoints`: the points of objects, in pixels of the original image.

The model returns a dict per row, as torchvision's keypoint detectors do: `boxes`, `scores`,
`labels` of D objects, `keypoints` (D, K, 3), of which the first two are x and y, and
`keypoints_scores` (D, K). Objects are compared by the boxes around their points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.schema import LABEL_ID, SCORE
from pipeline.models.detection.original_pixels import to_original
from pipeline.models.outputs import OutputError
from pipeline.models.tasks.base import Arrays, Mask
from pipeline.models.tasks.detect import OF_ANY, Detect, as_lists

if TYPE_CHECKING:
    import torch

_POINTS = "points"
_POINT = pa.struct([pa.field(name, pa.float32()) for name in ("x", "y", SCORE)])
_ENTRY = pa.struct([*OF_ANY, pa.field(_POINTS, pa.list_(_POINT))])


@dataclass(frozen=True)
class Keypoints(Detect):
    """Objects from `min_score` on, best first, each with its points."""

    job_fields: ClassVar[tuple[str, ...]] = ("labels", "min_score", "max_detections")
    takes_all_outputs: ClassVar[bool] = False
    column: ClassVar[str] = "keypoints"

    def fields(self) -> list[pa.Field]:
        return [pa.field(self.column, pa.list_(_ENTRY))]

    def _reduced(
        self, outputs: Any, num_rows: int, px: tuple[int, int] | None
    ) -> dict[str, torch.Tensor]:
        """Return points (B, M, K, 3), x, y and score each, and scores and label ids (B, M)."""
        import torch

        from pipeline.models.detection.detector_outputs import candidates, padded

        found = candidates(outputs, num_rows, len(self.spec.labels), px)
        if isinstance(outputs, Mapping) or not all("keypoints_scores" in each for each in outputs):
            raise OutputError(
                "expected per row a dict of boxes, scores, labels, keypoints and keypoints_scores"
            )
        places = padded([each["keypoints"] for each in outputs])[..., :2]
        values = torch.cat([places, padded([e["keypoints_scores"] for e in outputs])[..., None]], 3)
        points, scores, label_ids = self._best(found._replace(boxes=values.flatten(2)))
        points = points.reshape(*points.shape[:2], *values.shape[2:])
        return {_POINTS: points, SCORE: scores, LABEL_ID: label_ids}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        places, at = np.nonzero((arrays[SCORE] > 0) & ok[:, None])
        points = arrays[_POINTS][places, at]
        count, each = points.shape[:2]
        where = to_original(points[..., :2], rows, places).reshape(-1, 2)
        values = (*where.T, points[..., 2].reshape(-1))
        flat = pa.StructArray.from_arrays(
            [pa.array(np.ascontiguousarray(value, np.float32)) for value in values],
            fields=list(_POINT),
        )
        offsets = pa.array(np.arange(0, count * each + 1, each, dtype=np.int32))
        entries = pa.StructArray.from_arrays(
            [*self._labels_and_scores(arrays, places, at), pa.ListArray.from_arrays(offsets, flat)],
            fields=list(_ENTRY),
        )
        return {self.column: as_lists(entries, places, ok)}

    def _boxes(self, arrays: Arrays) -> Any:
        places = arrays[_POINTS][..., :2]
        return np.concatenate([places.min(axis=2), places.max(axis=2)], axis=2)

    def _box(self, entry: Mapping[str, Any]) -> list[float]:
        x, y = ([point[name] for point in entry[_POINTS]] for name in ("x", "y"))
        return [min(x), min(y), max(x), max(y)]
