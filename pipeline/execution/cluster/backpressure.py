"""How far a stage may be ahead of the next one, in slices.

Ray Data bounds what lies between stages by bytes, a quarter of the object store and more. Small
slices are then thousands, and the driver keeps some 40 KiB for each, whole slices below 100 KiB.
"""

from __future__ import annotations

from typing import Any

SLICES = 32
SLICES_PER_ACTOR = 8
_LIMIT = "pipeline.read_ahead"
_POLICIES = "backpressure_policies.enabled"


def limit_read_ahead(num_actors: int) -> None:
    """Let executions from now on read no more than the actors will soon take."""
    from ray.data import DataContext
    from ray.data._internal.execution import backpressure_policy

    context = DataContext.get_current()
    context.set_config(_LIMIT, SLICES + SLICES_PER_ACTOR * num_actors)
    context.set_config(_POLICIES, [*backpressure_policy.ENABLED_BACKPRESSURE_POLICIES, ReadAhead])


class ReadAhead:
    """A backpressure policy of Ray Data.

    What is ahead was put out by a stage and is not yet through the next one. Where that is too
    much the next one has work, so that nothing waits for ever.
    """

    name = "ReadAhead"

    def __init__(self, context: Any, topology: Any, resource_manager: Any) -> None:
        self._limit = context.get_config(_LIMIT)
        self._next = {
            operator: operator.output_dependencies[0]
            for operator in topology
            if operator.input_dependencies and operator.output_dependencies
        }

    def can_add_input(self, operator: Any) -> bool:
        """Tell whether a task of an operator may start."""
        return bool(self._ahead(operator) + operator.metrics.num_tasks_running < self._limit)

    def max_task_output_bytes_to_read(self, operator: Any) -> int | None:
        """Return 0 where a task is to wait before it puts out more, None where it need not."""
        return 0 if self._ahead(operator) >= self._limit else None

    def _ahead(self, operator: Any) -> int:
        after = self._next.get(operator)
        if after is None:
            return 0
        ahead = operator.metrics.num_task_outputs_generated
        return int(ahead - after.metrics.num_task_inputs_processed)
