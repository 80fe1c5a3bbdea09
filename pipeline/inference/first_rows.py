"""Detect a systematic failure: all first rows fail for one cause, so it is not the rows' fault.

This covers the model, the user's own transform, and files without permission, as long as no row
gets past them. A row with a prediction or another cause ends the watch; later failures only
quarantine their rows.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline.core.failures import Cause, Failure, Reason, SystematicFailure, cause_of, failures_of
from pipeline.core.schema import ERROR, ROW_ID

_ENOUGH_ROWS, _ENOUGH_OF_OUTPUTS = 64, 8
"""Rows that must fail: more for exceptions, as an input may begin with bad rows; fewer for wrong
output shapes, which are rarely a row's fault."""
_LEAST_ROWS = 2
MARK = "predicted"
_lock = threading.RLock()
"""Shared by all watches of this process, which are pickled, as locks cannot be."""


@dataclass(frozen=True)
class RaisedFailure(Failure):
    """An error that a model raised for a batch or a row."""

    where: str = ""
    """File and line of the user's code."""
    is_of_outputs: bool = False
    """The outputs are not as the job declares."""


class SystematicFailureDetector:
    """Counts first rows that failed for the same cause; can be pickled."""

    def __init__(self, num_rows: int | None, *, has_predictions: bool = False) -> None:
        """Begin to watch.

        Args:
            num_rows: Rows of the run, if known: a small run stops after fewer failures.
            has_predictions: Whether an earlier run has predictions: exceptions then stop nothing.
        """
        self._num_rows, self._has_predictions = num_rows, has_predictions
        self._mark: Path | None = None
        self._is_over = False
        self._failed: Cause | None = None
        self._first: RaisedFailure | None = None

    def share(self, folder: Path) -> None:
        """Share the end of the watch among the actors of this node, by a file in `folder`."""
        self._mark = folder / MARK

    def prepared(self, rows: pa.Table) -> None:
        """Note a slice before the model gets it, as all of its rows may have failed by then.

        Raises:
            SystematicFailure: All rows so far failed for one cause, and they are enough.
        """
        if self._is_over or rows.column(ERROR).null_count:
            return  # some rows reach the model
        early_failures = [
            (row, failure)
            for row, failure in enumerate(failures_of(rows))
            if failure is not None and failure.is_of_job
        ]
        if not early_failures:
            return
        row_ids = rows.column(ROW_ID)
        for row, failure in early_failures:
            self.failed(
                str(row_ids[row]), RaisedFailure(failure.reason, failure.stage, failure.message)
            )
        self.check()

    def predicted(self) -> None:
        """Note that rows have predictions; this ends the watch."""
        if not self._is_over:
            with _lock:
                self._is_over = True
            if self._mark is not None:
                with contextlib.suppress(OSError):  # the other actors then watch by themselves
                    self._mark.touch(mode=0o600)

    def failed(self, row_id: str, failure: Failure) -> None:
        """Note that a row failed, alone in its batch."""
        with _lock:
            if not self._is_over:
                self._count(cause_of(failure, row_id), failure)

    def _count(self, cause: Cause, failure: Failure) -> None:
        if not isinstance(failure, RaisedFailure) or not (
            failure.is_of_job or failure.reason is Reason.MODEL_ERROR
        ):
            self._is_over = True
        elif self._failed is None or self._first is None:
            self._failed, self._first = cause, failure
        elif _are_alike(self._first, self._failed.key, failure, cause.key):
            self._failed = replace(self._failed, num_rows=self._failed.num_rows + 1)
        else:
            self._is_over = True

    def check(self) -> None:
        """Check the failures so far, at the end of a batch.

        Raises:
            SystematicFailure: All rows failed for one cause, and there are enough of them.
        """
        with _lock:
            self._check()

    def _check(self) -> None:
        if self._is_over or self._failed is None or self._first is None:
            return
        is_of_outputs = self._first.is_of_outputs
        enough = _ENOUGH_OF_OUTPUTS if is_of_outputs else _ENOUGH_ROWS
        if self._num_rows is not None:
            enough = max(_LEAST_ROWS, min(enough, self._num_rows))
        if self._failed.num_rows < enough:
            return
        others = self._has_predictions or (self._mark is not None and self._mark.exists())
        if others and not is_of_outputs:
            self._is_over = True
            return
        raise SystematicFailure.of(self._failed, self._first.where)


def _are_alike(one: RaisedFailure, one_key: str, other: RaisedFailure, other_key: str) -> bool:
    if one.is_of_outputs or other.is_of_outputs:  # differing output shapes may be the rows' fault
        return one == other
    return one_key == other_key
