"""How far a stage may be ahead of the next one, in slices.

Ray Data bounds what lies between stages by bytes, a quarter of the object store and more. Small
slices are then thousands, and the driver keeps some 40 KiB for each, whole slices below 100 KiB.
"""

from __future__ import annotations

from pipeline.execution.versions import set_known

SLICES = 32
SLICES_PER_ACTOR = 8
LIMIT = "pipeline.read_ahead"
_RESERVED_SHARE = 0.2
"""Of the CPUs, for tasks of any stage. By Ray Data's half, of 24 cores with a GPU 14 to 20 would
decode instead of 23; with this 20 to 22 do."""


def limit_read_ahead(num_actors: int) -> None:
    """Let executions from now on read no more than the actors will soon take."""
    from ray.data import DataContext

    DataContext.get_current().set_config(LIMIT, SLICES + SLICES_PER_ACTOR * num_actors)


def reserve_less() -> None:
    """Let Ray Data keep fewer CPUs for each stage, where decoders reserve whole ones."""
    from ray.data import DataContext

    set_known(DataContext.get_current(), {"op_resource_reservation_ratio": _RESERVED_SHARE})
