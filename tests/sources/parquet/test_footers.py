"""Footers of Parquet shards that are read while the input is listed."""

from __future__ import annotations

import gc
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sources.parquet.test_columns import job_of, list_all


def _live() -> int:
    return sum(isinstance(o, (pq.FileMetaData, io.RawIOBase, OSError)) for o in gc.get_objects())


def test_nothing_of_a_footer_stays_in_memory_once_its_shard_is_listed(tmp_path: Path) -> None:
    columns = {f"c{index}": pa.array([0.5] * 8, pa.float32()) for index in range(3)}
    for number in range(20):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", row_group_size=4)
    job = job_of(tmp_path, features=[*columns])

    list_all(job)
    gc.collect()
    gc.disable()  # a command collects seldom
    try:
        before = _live()
        inputs = list_all(job)
        after = _live()
    finally:
        gc.enable()

    assert inputs.num_rows == 160
    assert after <= before
