"""Patches by which Ray Data's loop looks sooner what has ended, keeps less, and reads less ahead.

A look waits until all tasks have ended, 0.1 s at most, and only then the next ones start: of tasks
that take milliseconds, each of the few readers would run ten a second. Of every block it keeps
statistics, which no run asks for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from pipeline.execution.ray_options import READ_AHEAD, READ_AHEAD_SLICES

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


@contextlib.contextmanager
def enable_read_ahead(ray: Any) -> Iterator[None]:
    """Let executions in the body keep to `limit_read_ahead`.

    Raises:
        TypeError: Ray's policies have to answer more than ours does.
    """
    from ray.data import DataContext
    from ray.data._internal.execution import backpressure_policy

    from pipeline.execution.embedded.read_ahead import ReadAhead

    context, enabled = DataContext.get_current(), backpressure_policy.ENABLED_BACKPRESSURE_POLICIES
    context.set_config(READ_AHEAD, READ_AHEAD_SLICES)
    context.set_config(_POLICIES, [*enabled, ReadAhead])
    yield
