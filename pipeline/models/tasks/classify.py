"""Task `classify`: the best label of each row, its probability, and the top k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import CLASSIFY_FIELDS, LABEL, LABEL_ID, SCORE, TOP_K
from pipeline.models.agreement import Agreement, AgreementLimits, compare_labels
from pipeline.models.outputs import require
from pipeline.models.tasks import scores
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

if TYPE_CHECKING:
    import torch

_TOLERANCE = "tolerance"
"""Column of golden rows: tolerance of the row's score."""


@dataclass(frozen=True)
class Classify(Task):
    """The best labels with their probabilities."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("top_k", "labels", "scores")
    scores_of_logits: ClassVar[str] = scores.SOFTMAX
    needs_labels: ClassVar[bool] = True
    has_golden_folders: ClassVar[bool] = True
    labels_field: ClassVar[str] = "model.labels"
    """Field of the job that the labels come from."""

    def fields(self) -> list[pa.Field]:
        return list(CLASSIFY_FIELDS)

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        shape, declared = (num_rows, len(self.spec.labels)), f"{self.labels_field} {{}}"
        values = require(outputs, shape, declared, "one output per label").float()
        found, beside = scores.of_outputs(values, self.spec.scores, self.scores_of_logits)
        top = found.topk(self.spec.top_k, dim=1)
        if scores.OUTPUT in beside:
            beside[scores.OUTPUT] = values.gather(1, top.indices)
        return {SCORE: top.values, LABEL_ID: top.indices.to(torch.int32), **beside}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        names = pa.array(self.spec.labels, pa.string())
        scores, ids = arrays[SCORE], arrays[LABEL_ID]
        num_rows, top_k = ids.shape
        flat = pa.array(ids.reshape(-1))
        entries = pa.StructArray.from_arrays(
            [names.take(flat), flat, pa.array(scores.reshape(-1))], names=[LABEL, LABEL_ID, SCORE]
        )
        offsets = np.arange(0, (num_rows + 1) * top_k, top_k, dtype=np.int32)
        best = pa.array(np.ascontiguousarray(ids[:, 0]), mask=~ok)
        return {
            LABEL: names.take(best),
            LABEL_ID: best,
            SCORE: pa.array(np.ascontiguousarray(scores[:, 0]), mask=~ok),
            TOP_K: pa.ListArray.from_arrays(pa.array(offsets), entries, mask=pa.array(~ok)),
        }

    def num_outputs(self) -> int | None:
        return len(self.spec.labels)

    def compare(self, reference: Arrays, found: Arrays, limits: AgreementLimits) -> Agreement:
        return compare_labels(
            (reference[LABEL_ID], found[LABEL_ID]), (reference[SCORE], found[SCORE]), limits
        )

    def measured_columns(self) -> tuple[str, ...]:
        return (SCORE,)

    def golden_columns(self) -> tuple[str, ...]:
        return (LABEL,)

    def parse_golden(self, found: pa.Table) -> pa.Table:
        """Return the label, and the score and its tolerance if the golden rows have them."""
        columns = {LABEL: found.column(LABEL).cast(pa.string())}
        for name in (SCORE, _TOLERANCE):
            if name in found.column_names:
                columns[name] = found.column(name).cast(pa.float64())
        return pa.table(columns)

    def golden_differences(
        self,
        expected: pa.Table,
        found: Arrays,
        rows: pa.Table,
        limits: AgreementLimits,
        max_score_diff: float,
    ) -> list[str]:
        names = [self.spec.labels[label_id] for label_id in found[LABEL_ID][:, 0]]
        scores = [float(score) for score in found[SCORE][:, 0]]
        return [
            _difference(row, name, score, max_score_diff)
            for row, name, score in zip(expected.to_pylist(), names, scores, strict=True)
        ]

    def describe(self, row: Mapping[str, Any]) -> str:
        count = len(self.spec.labels)
        label = clean_message(row[LABEL])
        return f'label "{label}" {row[SCORE]:.2f}, {count} outputs, {count} labels'


def _difference(row: Mapping[str, Any], name: str, score: float, max_score_diff: float) -> str:
    wanted, tolerance = row.get(SCORE), row.get(_TOLERANCE)
    tolerance = max_score_diff if tolerance is None else tolerance
    is_near = wanted is None or abs(wanted - score) <= tolerance
    if name == row[LABEL] and is_near:
        return ""
    known = f"{row[LABEL]!r}" + ("" if wanted is None else f" {wanted:.4f}")
    return f"expected {known}, found {name!r} {score:.4f}"
