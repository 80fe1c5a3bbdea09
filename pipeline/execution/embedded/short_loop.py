"""Patches of Ray Data's loop: shorter waits, no statistics of blocks, less read ahead.

The loop waits until all tasks have ended, for at most 0.1 s, before it starts the next ones: with
tasks of milliseconds, each of the few readers would run ten per second. It also keeps statistics of
every block, which no run needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

READ_AHEAD = "pipeline.read_ahead"
READ_AHEAD_SLICES, READ_AHEAD_SLICES_PER_ACTOR = 32, 8
"""How far a stage may be ahead of the next one. Ray Data bounds what lies between stages by bytes,
a quarter of the object store and more. Small slices are then thousands, and the driver keeps some
40 KiB for each, whole slices below 100 KiB."""
_LOOK_S = 0.02
_POLICIES = "backpressure_policies.enabled"


@contextlib.contextmanager
def short_looks(ray: Any) -> Iterator[None]:
    """Let a look of Ray Data's loop wait for 20 ms at most."""
    from ray.data._internal.execution import streaming_executor_state as module

    with patch.object(module, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", _LOOK_S):
        yield


@contextlib.contextmanager
def without_block_statistics(ray: Any) -> Iterator[None]:
    """Let Ray Data keep no statistics of single blocks."""
    from ray.data._internal.execution.operators import map_operator

    with patch.object(map_operator, "to_stats", _no_stats):
        yield


def _no_stats(blocks: Any) -> list[Any]:
    return []


def limit_read_ahead(num_actors: int) -> None:
    """Let later executions read no more than the actors will soon take."""
    from ray.data import DataContext

    DataContext.get_current().set_config(
        READ_AHEAD, READ_AHEAD_SLICES + READ_AHEAD_SLICES_PER_ACTOR * num_actors
    )


@contextlib.contextmanager
def enable_read_ahead(ray: Any) -> Iterator[None]:
    """Let executions in the body keep to `limit_read_ahead`.

    Raises:
        TypeError: Ray's policies have to answer more than ours does.
    """
    from ray.data import DataContext
    from ray.data._internal.execution import backpressure_policy

    context, enabled = DataContext.get_current(), backpressure_policy.ENABLED_BACKPRESSURE_POLICIES
    context.set_config(READ_AHEAD, READ_AHEAD_SLICES)
    context.set_config(_POLICIES, [*enabled, _read_ahead_policy()])
    yield


def _read_ahead_policy() -> type:
    """Return a backpressure policy of Ray Data; not every Ray has the module of its base."""
    from ray.data._internal.execution.backpressure_policy.backpressure_policy import (
        BackpressurePolicy,
    )

    class ReadAhead(BackpressurePolicy):  # type: ignore[misc]  # Ray is not typed
        """Limits the outputs of a stage that are not yet through the next stage.

        At the limit the next stage has work, so nothing waits for ever.
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
            """Return 0 if a task is to wait before it puts out more, otherwise None."""
            return 0 if self._ahead(op) >= self._limit else None

        def _ahead(self, operator: Any) -> int:
            after = self._next.get(operator)
            if after is None:
                return 0
            ahead = operator.metrics.num_task_outputs_generated
            return int(ahead - after.metrics.num_task_inputs_processed)

    return ReadAhead
