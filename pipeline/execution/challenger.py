"""A second model over the rows that an actor has prepared: in a process of its own, and after them.

Whatever that process does costs predictions of the challenger alone: the slice of the model itself
is committed before, and nothing here raises.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow as pa

from pipeline.commit.staging import StagingWriter
from pipeline.core.errors import PipelineError
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures.counters import Counters
from pipeline.core.printable import clean_message
from pipeline.core.slices import SliceKey
from pipeline.execution.isolation.child_process import Child, ChildExit
from pipeline.execution.isolation.row_isolation import fail
from pipeline.execution.stages import PREDICT, SliceWork
from pipeline.inference.slice_results import unpredicted
from pipeline.models.spec import PredictorConfig

log = logging.getLogger(__name__)

_GIVE_UP_AFTER = 3
_START_LIMITS = 10
"""Loading a model may take so many times as long as a slice."""


@dataclass(frozen=True)
class ChallengerConfig:
    """What an actor needs to let a second model predict its rows; plain enough for Ray."""

    predictor: PredictorConfig
    writer: StagingWriter
    """Commits its slices, into an output of its own."""
    slice_s: float
    """How long it may take for a slice."""
    max_bytes: int
    """How much memory its process may take."""


class Challenger:
    """The process of the second model; of one actor."""

    def __init__(self, config: ChallengerConfig) -> None:
        """Take what to run; nothing starts before the first slice."""
        self._config, self._ends = config, list[str]()
        limits = (config.slice_s, _START_LIMITS * config.slice_s)
        work = SliceWork(None, config.predictor)
        self._child = Child(work, *limits, max_bytes=config.max_bytes, is_silent=True)

    def predict(self, key: SliceKey, prepared: pa.Table) -> None:
        """Predict and commit a slice; rows that it gives no prediction for are failed rows.

        Args:
            prepared: Its rows, as the model itself has got them.
        """
        try:
            counters: Counters = {}
            rows = self._predicted(prepared, counters)
            self._config.writer.write(key, counters, rows)
        except Exception as error:  # noqa: BLE001  # the run goes on, and fills the slice in
            told = clean_message(f"{type(error).__name__}: {error}")
            log.warning("the challenger's slice was not written: %s", told)

    def _predicted(self, prepared: pa.Table, counters: Counters) -> pa.Table:
        reason, message = Reason.MODEL_ERROR, ""
        if len(self._ends) < _GIVE_UP_AFTER:
            try:
                found = self._child.call(PREDICT, prepared)
            except PipelineError as error:
                message = clean_message(str(error))
            else:
                if not isinstance(found, ChildExit):
                    counters |= found.counters
                    return found.rows
                reason, message = found.reason, found.message
            self._ends.append(message)
            log.warning("the challenger has predicted no row of a slice: %s", message)
        else:
            message = f"given up after {_GIVE_UP_AFTER} slices: {self._ends[-1]}"
        failure = Failure(reason, PREDICT, message)
        failed = fail(prepared, dict.fromkeys(range(prepared.num_rows), failure))
        return unpredicted(self._config.predictor, failed)
