"""Settle once what the outputs of a model are, by the first rows; hold all later rows to it.

All actors of an output use one decision for a model, also those of resumed runs, of retries and of
later partitions: the first one to decide stores it in the output.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import InfraError, JobError
from pipeline.core.printable import clean_message
from pipeline.core.schema import SCORE
from pipeline.inference.runtimes.int8 import INT8
from pipeline.models.tasks import task_class
from pipeline.models.tasks.scores import (
    ENOUGH_ROWS,
    INT8_TOLERANCE,
    LOGITS,
    OFF,
    OPEN,
    PROBABILITIES,
    SOFTMAX,
    TOLERANCE,
    are_finite,
    look_alike,
    take_outputs,
)
from pipeline.preprocessing.model_input import Rows
from pipeline.storage.create_once import CreateOutcome

if TYPE_CHECKING:
    from pipeline.models.spec import ModelSpec, PredictorConfig
    from pipeline.models.tasks.base import Arrays

_OF_HOW = ("runtime", "precision")


def scores_path(spec: ModelSpec) -> str | None:
    """Return the folder of the decision in the output; None: what the outputs are is known.

    All partitions and ways to run the model share it.
    """
    if spec.task.scores != OPEN:
        return None
    facts = {key: value for key, value in spec.to_dict().items() if key not in _OF_HOW}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"_control/scores/{digest}"


class SettledScores:
    """What the outputs of a task are, as far as it is known."""

    def __init__(self, config: PredictorConfig) -> None:
        self._config, self.task = config, config.spec.task
        """`task` changes when its outputs are settled."""
        self._was_open = self.task.scores == OPEN
        self._tolerance = INT8_TOLERANCE if config.spec.precision == INT8 else TOLERANCE

    def keep(self, results: Arrays, rows: Rows, row_ids: Sequence[str] = ()) -> int:
        """Settle what is open by the results of a batch, and hold the batch to what is settled.

        Args:
            results: Those of the slice, name -> (N, ...), as `Task.reduce` names them; scores of
                the batch become those of what is settled.
            rows: (B,) the batch's rows.
            row_ids: (N,) of the slice; may be empty.

        Returns:
            How many rows had their outputs taken for probabilities.

        Raises:
            JobError: Rows contradict what is settled, or are too few to settle it.
            InfraError: The stored decision is damaged, or the store failed.
        """
        if self.task.scores not in (OPEN, PROBABILITIES):
            return 0
        judged = rows[are_finite(results[SCORE][rows])]
        if not len(judged):
            return 0
        off = results[OFF]
        if self.task.scores == OPEN and self._settle(off[judged]) == LOGITS:
            return 0
        take_outputs(results, judged)  # batches in flight began while this was open
        self._hold(off, judged, row_ids)
        return len(judged)

    def _settle(self, off: Any) -> str:
        """Return what the outputs are by the results `OFF` (N,) of some rows.

        Without an output to store it in, too few rows look like probabilities and settle nothing.
        """
        alike = look_alike(off, len(self.task.labels), adds_up=self._adds_up)
        found = None if alike is None else PROBABILITIES if alike else LOGITS
        if self._config.scores_path is not None:
            found = self._agree(self._config.scores_path, found, len(off))
            if found is None:
                raise JobError(
                    f"model.scores: the first outputs lie within [0, 1], and {len(off)} rows "
                    f"are too few to tell logits from probabilities; write {LOGITS!r} or "
                    f"{PROBABILITIES!r}"
                )
        if found is not None:
            self.task = replace(self.task, scores=found)
        return found or PROBABILITIES

    def _agree(self, folder: str, found: str | None, num_rows: int) -> str | None:
        """Store what was found, or return what another actor has stored.

        Raises:
            JobError: It is the contrary, by enough rows.
            InfraError: The file is damaged.
        """
        store, path = self._config.models, f"{folder}/outputs.json"
        assert store is not None, "it has a folder for it"
        if found is None and store.stat(path) is None:
            return None
        token = uuid.uuid4().hex
        data = json.dumps({"scores": found, "rows": num_rows, "token": token}).encode()
        if found and store.create_once(path, data, token) is not CreateOutcome.OTHER:
            return found
        try:
            kept = json.loads(store.read_bytes(path))["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise InfraError(f"{store.url(path)}: damaged: {error}") from None
        if kept not in (LOGITS, PROBABILITIES):
            raise InfraError(f"{store.url(path)}: damaged: scores {kept!r}")
        if (found, kept) == (PROBABILITIES, LOGITS) and num_rows >= ENOUGH_ROWS:
            raise JobError(
                f"model.scores: {num_rows} rows of outputs look like probabilities, and the "
                f"first rows of this model gave logits; write {LOGITS!r} or {PROBABILITIES!r}"
            )
        return str(kept)

    def _hold(self, off: Any, judged: Rows, row_ids: Sequence[str]) -> None:
        wrong = judged[off[judged] > self._tolerance]
        if not len(wrong):
            return
        row = int(wrong[0])
        named = clean_message(str(row_ids[row])) if len(row_ids) else f"number {row}"
        must = "lie within [0, 1]" + (" and add up to 1" if self._adds_up else "")
        says = "those of the first rows do" if self._was_open else "the job or the file says"
        raise JobError(
            f"model.scores: the outputs of row {named} are no probabilities, as {says}: they "
            f"do not {must} (off by {float(off[row]):.3g}); write {LOGITS!r} if they are logits"
        )

    @property
    def _adds_up(self) -> bool:
        return task_class(self.task.kind).scores_of_logits == SOFTMAX
