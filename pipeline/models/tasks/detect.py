"""Task `detect`: the objects in an image, with boxes in pixels of the original.

The original is the decoded image after its EXIF orientation. Resizing, cropping and the bars of a
letterbox are undone, and boxes are clipped to the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.printable import clean_message, first_names
from pipeline.core.schema import DETECTIONS, GEOMETRY, HEIGHT_PX, LABEL, LABEL_ID, SCORE, WIDTH_PX
from pipeline.models.agreement import Agreement, AgreementLimits
from pipeline.models.detection.box_agreement import (
    NEAR_IOU,
    SAME_IOU,
    Detections,
    compare_rows,
    match,
)
from pipeline.models.outputs import OutputError
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec, as_lists
from pipeline.models.tasks.raw import load_step

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model

BOXES = "boxes"
CORNERS = ("x_min", "y_min", "x_max", "y_max")
_ENTRY = pa.struct(
    [
        pa.field(LABEL, pa.string()),
        pa.field(LABEL_ID, pa.int32()),
        *(pa.field(name, pa.float32()) for name in (SCORE, *CORNERS)),
    ]
)
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Detect(Task):
    """Detections from `min_score` on, best first; an image without any has an empty list."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = (
        *("labels", "prompts", "min_score", "max_detections", "nms_iou"),
        *("postprocess", "postprocess_args"),
    )
    needs_labels: ClassVar[bool] = True
    needs_geometry: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = ("detection",)
    takes_all_outputs: ClassVar[bool] = True

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        labels = cls.job_labels(model)
        if labels and model.labels is not None:
            yield "labels has no effect with prompts: map each label to its prompt"
        if len({*labels}) < len(labels):
            yield "prompts: has a label more than once"

    @classmethod
    def job_labels(cls, model: Model) -> tuple[str, ...]:
        return (*model.prompts,)

    def fields(self) -> list[pa.Field]:
        if self.spec.postprocess is not None:
            _ = self._step  # refused here, on the driver, if it cannot be imported
        return [pa.field(DETECTIONS, pa.list_(_ENTRY))]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Return boxes (B, M, 4) in pixels of the model input, scores and label ids (B, M)."""
        return self.reduce_batch(outputs, num_rows, {})

    def reduce_batch(
        self, outputs: Any, num_rows: int, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        from pipeline.models.detection.boxes import best, candidates, split_head

        spec = self.spec
        if spec.head:
            outputs = split_head(outputs, spec.head, num_rows, len(spec.labels))
        if self.spec.postprocess is not None:
            outputs = self._step(outputs)
        # Images are channels last, (B, H, W, C).
        sizes = [tensor.shape[1:3] for tensor in batch.values() if tensor.ndim == 4]
        px = (int(sizes[0][0]), int(sizes[0][1])) if len(sizes) == 1 else None
        boxes, scores, label_ids = best(
            candidates(outputs, num_rows, len(spec.labels), px),
            spec.min_score,
            spec.max_detections,
            spec.nms_iou,
        )
        return {BOXES: boxes, SCORE: scores, LABEL_ID: label_ids}

    @cached_property
    def _step(self) -> Any:
        assert self.spec.postprocess is not None, "callers check it"
        return load_step(self.spec.postprocess, self.spec.postprocess_args)

    def check(self, arrays: Arrays) -> None:
        ids, count = arrays[LABEL_ID], len(self.spec.labels)
        unknown = ids[(ids < 0) | (ids >= count)]
        if len(unknown):
            raise OutputError(
                f"a detection has label {unknown[0]}, and model.labels has {count}, "
                f"0 to {count - 1}; label 0 of torchvision's detectors is the background"
            )

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        places, at = np.nonzero((arrays[SCORE] > 0) & ok[:, None])
        boxes = to_original(arrays[BOXES][places, at].reshape(-1, 2, 2), rows, places)
        boxes = boxes.clip(0, sizes_of(rows, places)[:, None]).reshape(-1, 4)
        sides = [pa.array(np.ascontiguousarray(side)) for side in boxes.astype(np.float32).T]
        entries = pa.StructArray.from_arrays(
            [*self._labels_and_scores(arrays, places, at), *sides], fields=list(_ENTRY)
        )
        return {DETECTIONS: as_lists(entries, places, ok)}

    def _labels_and_scores(self, arrays: Arrays, places: Any, at: Any) -> list[pa.Array]:
        """Return labels, their ids and scores of the entries `at`, (E,), of rows `places`."""
        ids = pa.array(arrays[LABEL_ID][places, at].astype(np.int32))
        names = pa.array(self.spec.labels, pa.string()).take(ids)
        return [names, ids, pa.array(arrays[SCORE][places, at].astype(np.float32))]

    def num_outputs(self) -> int | None:
        return len(self.spec.labels)

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare by boxes that overlap; see `box_agreement`."""
        return compare_rows(self._rows(reference), self._rows(candidate), limits)

    def _rows(self, arrays: Arrays) -> list[Detections]:
        rows = zip(arrays[BOXES], arrays[SCORE], arrays[LABEL_ID], strict=True)
        return [
            self._detections(boxes[scores != 0], scores[scores != 0], ids[scores != 0])
            for boxes, scores, ids in rows
        ]

    def _of_entries(self, entries: Sequence[Mapping[str, Any]]) -> Detections:
        boxes = np.array([_corners(entry) for entry in entries], np.float64).reshape(-1, 4)
        labels = np.array([entry[LABEL] for entry in entries], object)
        return self._detections(boxes, np.array([e[SCORE] for e in entries], np.float64), labels)

    def _detections(self, boxes: Any, scores: Any, labels: Any) -> Detections:
        is_full = len(scores) >= self.spec.max_detections
        least = max(self.spec.min_score, float(scores[-1])) if is_full else self.spec.min_score
        return Detections(boxes, scores, labels, least)

    def measured_columns(self) -> tuple[str, ...]:
        """Return the column: the number of detections per image is counted, and their scores."""
        return (DETECTIONS,)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare by boxes that overlap; see `box_agreement`."""
        pairs = zip(
            *(table.column(DETECTIONS).to_pylist() for table in (known, actual)), strict=True
        )
        return [self._difference(a or [], b, limits) for a, b in pairs]

    def _difference(
        self, wanted: list[dict[str, Any]], actual: list[dict[str, Any]], limits: AgreementLimits
    ) -> str:
        """Describe how the detections of an image differ; '' if they agree."""
        before, now = self._of_entries(wanted), self._of_entries(actual)
        pairs, limit, differences = match(before, now), limits.max_score_diff, []
        least_iou = SAME_IOU if limits.allows_ties else NEAR_IOU
        for entry, place, iou in zip(wanted, pairs.partner, pairs.iou, strict=True):
            score, other = entry[SCORE], actual[place] if place >= 0 else None
            if other is None:
                is_near = score is not None and score - now.least <= limit
            else:
                is_like = score is None or abs(score - other[SCORE]) <= limit
                is_near = is_like and iou >= least_iou
            if not is_near:
                differences.append(f"expected {self._shown(entry)}, found {self._shown(other)}")
        for place in np.flatnonzero(pairs.alone):
            if not actual[place][SCORE] - before.least <= limit:
                differences.append(
                    f"expected {self._shown(None)}, found {self._shown(actual[place])}"
                )
        return ", ".join(differences)

    def _shown(self, entry: Mapping[str, Any] | None) -> str:
        if entry is None:
            return "none"
        score = "" if entry[SCORE] is None else f" {entry[SCORE]:.4f}"
        corners = ", ".join(f"{value:.0f}" for value in _corners(entry))
        return f"{clean_message(str(entry[LABEL]))!r}{score} at {corners}"

    def describe(self, row: Mapping[str, Any]) -> str:
        entries, count = row[DETECTIONS], len(self.spec.labels)
        if not entries:
            return f"no {DETECTIONS} from score {self.spec.min_score:g} on, {count} labels"
        shown = first_names(f'"{clean_message(e[LABEL])}" {e[SCORE]:.2f}' for e in entries)
        return f"{DETECTIONS} {shown}, {count} labels"


def _corners(entry: Mapping[str, Any]) -> list[float]:
    return [entry[name] for name in CORNERS]


def to_original(points: Values, rows: pa.Table, places: Values) -> Values:
    """Undo resize, crop and padding.

    Args:
        points: (E, ..., 2): x and y in pixels of the model input; x = 0 is its left edge.
        rows: N prepared rows.
        places: (E,) the row of each, not null there.

    Returns:
        float64 (E, ..., 2), in pixels of the decoded image; may lie outside of it.
    """
    column = as_array(rows.column(GEOMETRY))
    flat = column.values.slice(column.offset * 4, len(column) * 4)
    geometry = flat.to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)[places]
    scale, offset = (
        part.reshape(len(places), *[1] * (points.ndim - 2), 2)
        for part in (geometry[:, :2], geometry[:, 2:])
    )
    return np.asarray((points.astype(np.float64) - offset) / scale)


def sizes_of(rows: pa.Table, places: Values) -> Values:
    """Return width and height of the original image, float64 (E, 2), of rows `places`, (E,)."""
    sizes = [
        as_array(rows.column(name)).fill_null(0).to_numpy(zero_copy_only=False)[places]
        for name in (WIDTH_PX, HEIGHT_PX)
    ]
    return np.stack(sizes, axis=1).astype(np.float64)
