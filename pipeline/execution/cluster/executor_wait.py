"""Lets Ray Data's loop wait for news in place of looking fifty times a second.

Each look costs the driver milliseconds, with nothing ended too: Ray Data waits a moment for all of
its tasks, whichever have ended, and then reckons up anew what resources each operator has.
"""

from __future__ import annotations

from typing import Any

_WAIT_S = 0.1


class WaitForNews:
    """An execution callback of Ray Data: after a step in which nothing happened, wait.

    Until a task ends or puts out a block, or `_WAIT_S` have passed: in the meantime Ray Data may
    have to notice what no task tells, such as a consumer that has caught up.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, ...]] = []

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing: there is nothing to wait for yet."""

    def on_execution_step(self, executor: Any) -> None:
        """Wait, if this step has changed nothing."""
        operators = list(executor._topology)
        seen = [_progress(operator) for operator in operators]
        is_changed, self._seen = seen != self._seen, seen
        fetcher = executor._metadata_fetcher
        if is_changed or fetcher._drained_tasks or any(fetcher._fifos.values()):
            return
        # What the next stages have no room for stays ready, and is no news.
        awaited = [
            task.get_waitable()
            for operator in operators
            if not operator._in_task_output_backpressure
            for task in operator.get_active_tasks()
        ]
        if awaited:
            import ray

            ray.wait(awaited, num_returns=1, timeout=_WAIT_S, fetch_local=False)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing."""


def _progress(operator: Any) -> tuple[int, ...]:
    metrics = operator.metrics
    return (
        metrics.num_tasks_submitted,
        metrics.num_task_outputs_generated,
        metrics.num_tasks_finished,
        metrics.num_tasks_failed,
    )
