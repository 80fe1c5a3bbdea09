"""Task `multilabel`: every label of a row whose probability is at least `min_score`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.core.printable import clean_message, first_names
from pipeline.core.schema import (
    LABEL,
    LABEL_ID,
    LABELS,
    LABELS_FIELD,
    MAX_LABELS,
    MAX_LABELS_FIELD,
    SCORE,
)
from pipeline.models.agreement import Agreement, AgreementLimits, entry_differences, within
from pipeline.models.outputs import require
from pipeline.models.tasks import scores
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec, as_lists
from pipeline.preprocessing.texts.windows import Windows

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model


@dataclass(frozen=True)
class Multilabel(Task):
    """The labels that a row has, each with its probability, best first."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("labels", "min_score", "scores")
    scores_of_logits: ClassVar[str] = scores.SIGMOID
    needs_labels: ClassVar[bool] = True
    takes_windows: ClassVar[bool] = True

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        if model.scores == scores.SOFTMAX:
            yield (
                "scores: 'softmax' weighs labels against each other, and those of task "
                "'multilabel' are independent; write 'sigmoid', or task 'classify'"
            )

    def fields(self) -> list[pa.Field]:
        return [LABELS_FIELD, *([MAX_LABELS_FIELD] if self.spec.has_windows else [])]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        shape = (num_rows, len(self.spec.labels))
        values = require(outputs, shape, "model.labels {}", "one output per label").float()
        label_scores, beside = scores.scores_of(values, self.spec.scores, self.scores_of_logits)
        return {SCORE: label_scores, **beside}

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        label_scores = arrays[SCORE]
        least = label_scores.dtype.type(self.spec.min_score)  # float32 0.1 reaches 0.1
        places, ids = np.nonzero((label_scores >= least) & ok[:, None])
        best_first = np.lexsort((ids, -label_scores[places, ids], places))
        places, ids = places[best_first], ids[best_first].astype(np.int32)
        names = pa.array(self.spec.labels, pa.string()).take(pa.array(ids))
        best = pa.array(np.ascontiguousarray(label_scores[places, ids]))
        entries = pa.StructArray.from_arrays([names, pa.array(ids), best], [LABEL, LABEL_ID, SCORE])
        return {LABELS: as_lists(entries, places, ok)}

    def columns_of_windows(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows
    ) -> dict[str, pa.Array]:
        """Return the labels of the mean scores, and those of the maxima."""
        means, maxima = windows.means(arrays[SCORE]), windows.maxima(arrays[SCORE])
        highest = self.columns({SCORE: maxima}, ok, rows)
        return {**self.columns({SCORE: means}, ok, rows), MAX_LABELS: highest[LABELS]}

    def num_outputs(self) -> int | None:
        return len(self.spec.labels)

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare the scores of all labels that either side writes.

        So the labels of a row are the same, unless a score is within `max_score_diff` of
        `min_score`.
        """
        a, b = (arrays[SCORE].astype(np.float64) for arrays in (reference, candidate))
        least, differences = self.spec.min_score, np.abs(a - b)
        matters = (a >= least) | (b >= least) | np.isnan(differences)
        return within(np.where(matters, differences, 0.0), limits.max_score_diff)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Compare entries; of a label that is not there only `min_score` is known."""
        pairs = zip(*(table.column(LABELS).to_pylist() for table in (known, actual)), strict=True)
        return [", ".join(self._differences(a, b, limits.max_score_diff)) for a, b in pairs]

    def _differences(
        self, known: list[dict[str, Any]], actual: list[dict[str, Any]], limit: float
    ) -> list[str]:
        before, now = _scores(known), _scores(actual)
        unknown = [label for label in before if label not in self.spec.labels]
        differences = [f"expected {label!r}, which is no label of the model" for label in unknown]
        before = {label: before[label] for label in before if label not in unknown}
        least = (self.spec.min_score, self.spec.min_score)
        return differences + entry_differences(before, now, least, limit)

    def measured_columns(self) -> tuple[str, ...]:
        return (LABELS,)

    def golden_columns(self) -> tuple[str, ...]:
        return (LABELS,)

    def parse_golden(self, golden: pa.Table) -> pa.Table:
        """Return the entries; of labels that come as plain texts the scores are null."""
        column = golden.column(LABELS)
        if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
            return pa.table({LABELS: column.cast(LABELS_FIELD.type)})
        texts = column.cast(pa.list_(pa.string())).to_pylist()
        entries = [[{LABEL: text} for text in row] for row in texts]
        return pa.table({LABELS: pa.array(entries, LABELS_FIELD.type)})

    def describe(self, row: Mapping[str, Any]) -> str:
        entries, count = row[LABELS], len(self.spec.labels)
        if not entries:
            return f"none of {count} labels reaches {self.spec.min_score:g}"
        shown = first_names(f'"{clean_message(e[LABEL])}" {e[SCORE]:.2f}' for e in entries)
        return f"labels {shown}, {count} outputs, {count} labels"


def _scores(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {entry[LABEL]: entry[SCORE] for entry in entries}
