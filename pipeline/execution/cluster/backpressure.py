"""How far a stage may be ahead of the next one, in slices.

Ray Data bounds what lies between stages by bytes, a quarter of the object store and more. Small
slices are then thousands, and the driver keeps some 40 KiB for each, whole slices below 100 KiB.
"""

from __future__ import annotations

SLICES = 32
SLICES_PER_ACTOR = 8
LIMIT = "pipeline.read_ahead"


def limit_read_ahead(num_actors: int) -> None:
    """Let executions from now on read no more than the actors will soon take."""
    from ray.data import DataContext

    DataContext.get_current().set_config(LIMIT, SLICES + SLICES_PER_ACTOR * num_actors)
