"""Golden rows: rows with known predictions, which every actor predicts before its first slice.

They reveal a wrong model, a wrong transform or a sick device before time is spent on it. The rows
are decoded, transformed and predicted like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.core.errors import GateRefused
from pipeline.core.figures import Comparison, Counters, SliceFigures
from pipeline.core.schema import ERROR, MESSAGE, ROW_ID
from pipeline.gates.results import GateResult
from pipeline.inference.result_table import columns_of, scatter_batch
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import Inputs, num_rows, take_rows

if TYPE_CHECKING:
    from pipeline.models.spec import ModelSpec

EXACT_SCORE_DIFF = 0.001
"""Scores in fp32 differ between machines by a hundredth of this."""
_SHOWN = 3

Reduce = Callable[[Inputs], Arrays]
"""Inputs of rows -> outputs that the task keeps (`Engine.reduce`)."""


class GoldenRefused(GateRefused):
    """An actor's predictions of golden rows differ."""

    def result(self) -> GateResult:
        """Return the result of the gate, for the report."""
        return GateResult("golden", "fail", None, 100.0, str(self))


@dataclass(frozen=True)
class GoldenRows:
    """Rows with their known predictions, in a form that Ray can send."""

    rows: pa.Table
    """`source_schema`, encoded."""
    expected: pa.Table
    """`label` with perhaps `score` and `tolerance`; or the columns of the task."""
    limits: AgreementLimits
    max_score_diff: float | None
    """As the job sets it; None: by the precision."""
    refuses: bool
    """A row that differs ends the run."""
    preprocess: Callable[[Counters, pa.Table], pa.Table] | None = None
    """Prepares rows as the run does; None if they need no preparation."""

    def check(self, spec: ModelSpec, reduce: Reduce, where: str, counters: Counters) -> None:
        """Predict the rows and compare.

        Args:
            reduce: The actor's prediction.
            where: The actor, for the message.
            counters: Gets the figure `golden`.

        Raises:
            GoldenRefused: A row differs; the message names the first ones with both values.
        """
        started = perf_counter()
        differences = self.differences(spec, reduce)
        num_rows = self.rows.num_rows
        compared = Comparison(num_rows, num_rows - len(differences), perf_counter() - started)
        SliceFigures(golden=compared).add_to(counters)
        if differences and self.refuses:
            more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise GoldenRefused(
                f"nothing was published; golden: {len(differences)} of {num_rows} golden rows "
                f"differ on {where}: {'; '.join(differences[:_SHOWN])}{more}; the model or "
                "the transform differs, or the device is faulty"
            )

    def differences(self, spec: ModelSpec, reduce: Reduce) -> list[str]:
        """Return a line for every row that differs: id, expected and predicted values."""
        rows = self.rows if self.preprocess is None else self.preprocess({}, self.rows)
        failed = dict(enumerate(_failures(rows)))
        good = [row for row, failure in failed.items() if failure is None]
        chosen = rows.take(pa.array(good, pa.int64()))
        windows = spec.input.windows(chosen)
        owners = np.arange(len(good)) if windows is None else windows.owners
        inputs = spec.input.arrays(chosen if windows is None else windows.rows)
        predicted, raised = _predict(inputs, reduce)
        failed |= {good[owners[place]]: failure for place, failure in raised.items()}
        done = [good[row] for place, row in enumerate(owners.tolist()) if place not in raised]
        places = [place for place, row in enumerate(done) if failed[row] is None]
        predicted = {name: values[places] for name, values in predicted.items()}
        kept = [row for row in good if failed[row] is None]
        lines = {row: f"failed: {failure}" for row, failure in failed.items() if failure}
        if kept:
            lines |= dict(zip(kept, self._compare(spec, predicted, rows, kept), strict=True))
        ids = rows.column(ROW_ID).to_pylist()
        return [f"{ids[row]}: {lines[row]}" for row in sorted(lines) if lines[row]]

    def _compare(
        self, spec: ModelSpec, predicted: Arrays, rows: pa.Table, kept: Sequence[int]
    ) -> list[str]:
        """Return a difference per kept row; '' if it agrees."""
        places, task = pa.array(kept), make_task(spec.task)
        chosen, ok = rows.take(places), np.ones(len(kept), bool)
        windows = spec.input.windows(chosen)
        table = pa.table(columns_of(task, predicted, ok, chosen, windows))
        limits = replace(self.limits, max_score_diff=self._score_diff(spec))
        return task.differences(self.expected.take(places), table, limits)

    def _score_diff(self, spec: ModelSpec) -> float:
        if self.max_score_diff is not None:
            return self.max_score_diff
        is_exact = spec.precision == "fp32" and not spec.input.is_approximate
        return EXACT_SCORE_DIFF if is_exact else self.limits.max_score_diff


def _failures(rows: pa.Table) -> list[str | None]:
    pairs = zip(rows.column(ERROR).to_pylist(), rows.column(MESSAGE).to_pylist(), strict=True)
    return [f"{error}: {message}" if error else None for error, message in pairs]


def _predict(inputs: Inputs, reduce: Reduce) -> tuple[Arrays, dict[int, str]]:
    """Predict all rows at once, or one by one if that raises; return row -> its error, too."""
    if not num_rows(inputs):
        return {}, {}
    try:
        return reduce(inputs), {}
    except Exception:  # noqa: BLE001  # a user's model may raise anything
        pieces, raised = [], {}
    for row in range(num_rows(inputs)):
        try:
            pieces.append(reduce(take_rows(inputs, slice(row, row + 1))))
        except Exception as error:  # noqa: BLE001  # as above
            raised[row] = f"{type(error).__name__}: {error}"
    predicted: Arrays = {}
    for index, piece in enumerate(pieces):
        for name, values in piece.items():
            scatter_batch(predicted, name, len(pieces), np.array([index]), values)
    return predicted, raised
