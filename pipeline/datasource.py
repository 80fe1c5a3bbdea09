"""The Ray Data end of the source: one read task a unit, one packed row a slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.plan import Unit
from pipeline.rows import Reader
from pipeline.schema import pack
from pipeline.source import read_slices


class ShardSource(Datasource):  # type: ignore[misc]  # Ray ships no types that mypy follows
    """Reads the slices that have no staged part yet, and only those."""

    def __init__(self, reader: Reader, units: Mapping[Unit, Sequence[int]]) -> None:
        """Take the units to read, each with the first rows of its wanted slices, if known."""
        super().__init__()
        self._reader = reader
        self._units = units

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        tasks = []
        for unit, starts in self._units.items():
            metadata = BlockMetadata(
                num_rows=len(starts) or None, size_bytes=None, input_files=None, exec_stats=None
            )
            tasks.append(ReadTask(_read_task(self._reader, unit, frozenset(starts)), metadata))
        return tasks


def _read_task(
    reader: Reader, unit: Unit, starts: frozenset[int]
) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterable[pa.Table]:
        for key, counters, rows in read_slices(reader, unit, starts):
            yield pack(key, counters, rows)

    return read
