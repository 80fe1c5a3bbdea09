"""Watch the first rows that reach a model: when all fail for one cause, no row is at fault.

One row with a prediction, or one with another cause, ends the watch: from then on a row that fails
costs itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline.core.causes import AlikeError, Cause, cause_of
from pipeline.core.failures import Failure, Reason

_ENOUGH_ROWS, _ENOUGH_OF_OUTPUTS = 64, 8
"""Of exceptions: an input may begin with bad rows. Outputs of another shape are rarely a row's."""
_LEAST_ROWS = 2
_DEVICE_WORDS = ("cuda error", "device-side assert", "cublas", "cudnn")
"""A device that failed once fails every later row: the first one may be at fault."""
MARK = "predicted"


@dataclass(frozen=True)
class Raised(Failure):
    """What a model raised over a batch, or over one row."""

    where: str = ""
    """File and line of the user's code."""
    is_of_outputs: bool = False
    """The outputs are not what the job declares."""


class FirstRows:
    """Counts rows that failed for the same cause, until one did not; plain enough for Ray."""

    def __init__(self, num_rows: int | None, *, has_predictions: bool = False) -> None:
        """Begin to watch.

        Args:
            num_rows: Of the whole run, if that is known: fewer than usual have to do.
            has_predictions: An earlier run got predictions: exceptions then prove nothing.
        """
        self._num_rows, self._has_predictions = num_rows, has_predictions
        self._mark: Path | None = None
        self._is_over = False
        self._failed: Cause | None = None
        self._first: Raised | None = None
        self._row_ids: Sequence[str] = ()

    def share(self, folder: Path) -> None:
        """Learn from the other actors of this node, by a file in a folder of the run."""
        self._mark = folder / MARK

    def begin(self, row_ids: pa.ChunkedArray) -> None:
        """Note the ids of the rows of a slice; copied, for a column holds the slice in memory."""
        self._row_ids = [] if self._is_over else row_ids.to_pylist()

    def predicted(self) -> None:
        """Note that rows have predictions."""
        if not self._is_over:
            self._is_over = True
            if self._mark is not None:
                with contextlib.suppress(OSError):  # the others then go by what they see
                    self._mark.touch(mode=0o600)

    def failed(self, row: int, failure: Failure) -> None:
        """Note that a row of the slice failed, alone in its batch."""
        if self._is_over:
            return
        cause = cause_of(failure, str(self._row_ids[row]))
        if not isinstance(failure, Raised) or not _is_models(failure):
            self._is_over = True
        elif self._failed is None or self._first is None:
            self._failed, self._first = cause, failure
        elif _are_alike(self._first, self._failed.key, failure, cause.key):
            self._failed = replace(self._failed, num_rows=self._failed.num_rows + 1)
        else:
            self._is_over = True

    def check(self) -> None:
        """Look at what failed so far, at the end of a batch.

        Raises:
            AlikeError: All rows so far, and enough of them.
        """
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
        raise AlikeError.of(self._failed, self._first.where)


def _is_models(failure: Failure) -> bool:
    message = failure.message.lower()
    is_of_device = any(word in message for word in _DEVICE_WORDS)
    return failure.reason is Reason.MODEL_ERROR and not is_of_device


def _are_alike(one: Raised, one_key: str, other: Raised, other_key: str) -> bool:
    if one.is_of_outputs or other.is_of_outputs:  # outputs whose shapes differ may be the rows'
        return one == other
    return one_key == other_key
