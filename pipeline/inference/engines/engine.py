"""The protocol of engines: one model on one device, opened, used slice after slice, and closed."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from pipeline.core.figures import Counters
from pipeline.inference.first_rows import SystematicFailureDetector
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks.base import Arrays
from pipeline.preprocessing.model_input import Inputs


class Engine(Protocol):
    """Turns prepared rows into predictions.

    A run calls `predict` in its actors and in children that find the rows at fault, and `reduce`
    for golden rows and for trials of `auto`. The reference check belongs to the engine, which knows
    how to predict rows a second time in eager fp32.
    """

    def __init__(
        self,
        config: PredictorConfig,
        first: SystematicFailureDetector | None = None,
        *,
        ends_process: bool = False,
    ) -> None:
        """Load the model onto its device.

        Args:
            config: The model, its batches and its device.
            first: Watches the first rows; None: a failure is always the row's own fault.
            ends_process: Whether a single row that does not fit into a GPU's memory ends the
                process, so that a child decides; otherwise the row fails.

        Raises:
            JobError: The weights, the layer, the device or the precision cannot be used.
            OutOfDeviceMemory: A GPU has no room for the model, or for a batch of it.
            InfraError: The GPU has failed.
        """
        ...

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Predict the rows of one slice that have no error yet.

        Args:
            rows: The slice, with the columns of the input's `prepare`.
            counters: Gets the entries `transfer` and `predict`.

        Returns:
            The rows with the columns of `staged_schema`, in the same order and without the input.
            Each has a prediction or a failure (`result_table.to_table`).

        Raises:
            SystematicFailure: All rows of the first batches failed for one cause.
            JobError: Outputs contradict what was decided about them, or a batch of fixed size does
                not fit into memory.
            InfraError: The GPU has failed.
        """
        ...

    def reduce(self, inputs: Inputs) -> Arrays:
        """Return the reduced outputs of rows, without isolating failures.

        Args:
            inputs: Arrays of `Input.arrays`, each (N, ...).

        Returns:
            Name -> (N, ...), as `Task.reduce` names them.

        Raises:
            JobError: Outputs contradict what was decided about them.
            InfraError: The GPU has failed.
            Exception: Any error of the model or the device.
        """
        ...

    @property
    def awaits_reference_check(self) -> bool:
        """Tell whether the reference check will use rows of the next slice."""
        ...

    def close(self) -> None:
        """Take the model off its device, for good."""
        ...
