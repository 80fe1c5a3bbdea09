"""Check whether outputs are the logits or probabilities that the job declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.schema import SCORE
from pipeline.inference.runtimes.int8 import INT8
from pipeline.models.tasks import task_class
from pipeline.models.tasks.scores import (
    INT8_TOLERANCE,
    LOGITS,
    OFF,
    OPEN,
    PROBABILITIES,
    SOFTMAX,
    TOLERANCE,
    are_probabilities,
)
from pipeline.preprocessing.model_input import Rows

if TYPE_CHECKING:
    from pipeline.models.spec import PredictorConfig
    from pipeline.models.tasks.base import Arrays


class OutputsCheck:
    """Checks the first batch if nothing declares what outputs are.

    If probabilities are declared, every batch is checked.
    """

    def __init__(self, config: PredictorConfig) -> None:
        spec = config.spec
        self._task, self._is_open = spec.task, spec.task.scores == OPEN
        self._tolerance = INT8_TOLERANCE if spec.precision == INT8 else TOLERANCE
        self._is_published = config.models is not None
        self._adds_up = task_class(spec.task.kind).scores_of_logits == SOFTMAX
        self._like = "lie within [0, 1]" + (" and add up to 1" if self._adds_up else "")

    def check(self, results: Arrays, rows: Rows, row_ids: Sequence[str] = ()) -> None:
        """Check a finished batch.

        Args:
            results: Results of the slice, name -> (N, ...), as `Task.reduce` names them.
            rows: (B,), the batch's row numbers.
            row_ids: (N,); may be empty.

        Raises:
            JobError: Undeclared outputs look like probabilities, or are too few to tell; or
                declared probabilities are not.
        """
        if not self._is_open and self._task.scores != PROBABILITIES:
            return
        finite = np.isfinite(results[SCORE][rows].reshape(len(rows), -1)).all(axis=1)
        judged = rows[finite]
        if not len(judged):
            return
        if self._is_open:
            self._judge(results[OFF][judged])
            return
        wrong = judged[results[OFF][judged] > self._tolerance]
        if len(wrong):
            row = int(wrong[0])
            named = clean_message(str(row_ids[row])) if len(row_ids) else f"number {row}"
            raise JobError(
                f"model.scores: the job or the file declares probabilities, but the outputs of row "
                f"{named} do not {self._like} (off by {float(results[OFF][row]):.3g}); "
                f"write {LOGITS!r} if they are logits"
            )

    def _judge(self, off: np.ndarray) -> None:
        alike = are_probabilities(off, len(self._task.labels), adds_up=self._adds_up)
        if alike:
            raise JobError(
                f"model.scores: the outputs of the first rows {self._like}: write "
                f"{PROBABILITIES!r} if they are probabilities, {LOGITS!r} if they are logits"
            )
        if alike is None and self._is_published:
            raise JobError(
                f"model.scores: the first outputs lie within [0, 1], and {len(off)} rows are too "
                f"few to tell logits from probabilities; write {LOGITS!r} or {PROBABILITIES!r}"
            )
        self._is_open = alike is None
