"""How far a stage may be ahead of the next one, in slices.

Ray Data bounds what lies between stages by bytes, a quarter of the object store and more. Small
slices are then thousands, and the driver keeps some 40 KiB for each, whole slices below 100 KiB.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

SLICES = 32
SLICES_PER_ACTOR = 8
LIMIT = "pipeline.read_ahead"
_POLICIES = "backpressure_policies.enabled"


@contextlib.contextmanager
def enable_read_ahead(ray: Any) -> Iterator[None]:
    """Let executions in the body keep to `limit_read_ahead`.

    Raises:
        TypeError: Ray's policies have to answer more than ours does.
    """
    from ray.data import DataContext
    from ray.data._internal.execution import backpressure_policy

    from pipeline.execution.cluster.read_ahead import ReadAhead

    context, enabled = DataContext.get_current(), backpressure_policy.ENABLED_BACKPRESSURE_POLICIES
    context.set_config(LIMIT, SLICES)
    context.set_config(_POLICIES, [*enabled, ReadAhead])
    yield


def limit_read_ahead(num_actors: int) -> None:
    """Let executions from now on read no more than the actors will soon take."""
    from ray.data import DataContext

    DataContext.get_current().set_config(LIMIT, SLICES + SLICES_PER_ACTOR * num_actors)
