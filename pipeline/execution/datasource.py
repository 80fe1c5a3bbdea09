"""The Ray Data end of the source: one read task a unit, one packed row a slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.execution.stream_parts import UnitRead


class ShardSource(Datasource):  # type: ignore[misc]  # Ray ships no types that mypy follows
    """Reads units, each in a task of its own."""

    def __init__(self, reads: Sequence[UnitRead]) -> None:
        super().__init__()
        self._reads = reads

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                unit_read.read,
                BlockMetadata(
                    num_rows=unit_read.num_slices,
                    size_bytes=None,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for unit_read in self._reads
        ]
