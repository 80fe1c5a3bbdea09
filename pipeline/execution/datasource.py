"""The Ray Data end of the source: one read task a unit, one packed row a slice."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.execution.isolation.guarded_reader import read_guarded
from pipeline.execution.tasks import attempts_of
from pipeline.execution.visible_gpus import no_gpus
from pipeline.sources.lookup import LookUp
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit


class ShardSource(Datasource):  # type: ignore[misc]  # Ray ships no types that mypy follows
    """Reads the slices that have no staged part yet, and only those."""

    def __init__(
        self,
        reader: Reader,
        units: Mapping[Unit, Sequence[int]],
        run_id: str,
        row_timeout_s: float,
        lookup: LookUp | None = None,
    ) -> None:
        """Take what to read.

        Args:
            units: Each with the first rows of its wanted slices, if known.
            row_timeout_s: How long the reading of a row may take.
            lookup: Sets rows aside that need no model; None: all are computed.
        """
        super().__init__()
        self._guarded = functools.partial(_read, reader, run_id, row_timeout_s)
        self._units, self._lookup = units, lookup

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        tasks = []
        for unit, starts in self._units.items():
            lookup = self._lookup and self._lookup.of_unit(unit.index)
            metadata = BlockMetadata(
                num_rows=len(starts) or None, size_bytes=None, input_files=None, exec_stats=None
            )
            tasks.append(
                ReadTask(
                    functools.partial(self._guarded, unit, frozenset(starts), lookup), metadata
                )
            )
        return tasks


def _read(
    reader: Reader,
    run_id: str,
    row_timeout_s: float,
    unit: Unit,
    starts: frozenset[int],
    lookup: LookUp | None,
) -> Iterable[pa.Table]:
    with no_gpus():
        slices = read_guarded(reader, unit, starts, attempts_of(run_id), row_timeout_s)
        yield from slices if lookup is None else lookup.slices(slices)
