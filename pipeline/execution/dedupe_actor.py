"""The index of earlier results in a Ray actor, so that all predictors of a run share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.execution.dedupe import ResultIndex
from pipeline.execution.visible_gpus import settle_gpus
from pipeline.planning.allocation import MAX_ACTOR_RESTARTS, MAX_TASK_RETRIES


class RemoteIndex:
    """The index of a run, in a Ray actor that all predictors share."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def lookup(self, digests: Sequence[bytes]) -> tuple[list[int], pa.Table | None]:
        """Look up the results of rows, as `Index.lookup`."""
        import ray

        found: tuple[list[int], pa.Table | None] = ray.get(self._actor.lookup.remote(digests))
        return found

    def add(self, digests: Sequence[bytes], results: pa.Table) -> None:
        """Keep the results of rows, as `Index.add`; does not wait for the actor."""
        self._actor.add.remote(digests, results)


class HiddenIndex(ResultIndex):
    """The index of the actor's process, which sees no GPU."""

    def __init__(self) -> None:
        settle_gpus(0.0)
        super().__init__()


def start_index() -> Any:
    """Start the actor that holds a `ResultIndex`; it ends with the run."""
    import ray

    options = {"max_restarts": MAX_ACTOR_RESTARTS, "max_task_retries": MAX_TASK_RETRIES}
    return ray.remote(num_cpus=0, **options)(HiddenIndex).remote()
