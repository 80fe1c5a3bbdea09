"""Read Parquet parts of an output: staged, published, or of the quarantine.

A part that is gone raises FileNotFoundError, a store that fails PipelineError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store import Store


@contextlib.contextmanager
def open_part(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """Open a part: its footer is read, its rows are not."""
    with store.open(path) as handle:
        yield pq.ParquetFile(handle)


def read_columns(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a part, those that it has; None reads all."""
    with open_part(store, path) as part:
        return part.read(columns=None if columns is None else list(columns))


def read_batches(
    store: Store, path: str, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read columns of a part, those that it has, at most `batch_rows` rows at a time.

    Row groups one by one: each fits into memory, whatever its rows are.
    """
    with open_part(store, path) as part:
        for group in range(part.num_row_groups):
            yield from part.iter_batches(
                batch_size=batch_rows, row_groups=[group], columns=list(columns)
            )
