"""A backpressure policy of Ray Data: imported only where this Ray has such policies."""

from __future__ import annotations

from typing import Any

from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy

from pipeline.execution.ray_options import READ_AHEAD


class ReadAhead(BackpressurePolicy):  # type: ignore[misc]  # Ray is not typed
    """Bounds what was put out by a stage and is not yet through the next one.

    Where that is too much the next one has work, so that nothing waits for ever.
    """

    name = "ReadAhead"

    def __init__(self, context: Any, topology: Any, resource_manager: Any) -> None:
        super().__init__(context, topology, resource_manager)
        self._limit = context.get_config(READ_AHEAD)
        self._next = {
            operator: operator.output_dependencies[0]
            for operator in topology
            if operator.input_dependencies and operator.output_dependencies
        }

    def can_add_input(self, op: Any) -> bool:
        """Tell whether a task of an operator may start."""
        return bool(self._ahead(op) + op.metrics.num_tasks_running < self._limit)

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Return 0 where a task is to wait before it puts out more, None where it need not."""
        return 0 if self._ahead(op) >= self._limit else None

    def _ahead(self, operator: Any) -> int:
        after = self._next.get(operator)
        if after is None:
            return 0
        ahead = operator.metrics.num_task_outputs_generated
        return int(ahead - after.metrics.num_task_inputs_processed)
