"""A slice is staged whole, in one put, or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit.staging import StagingWriter, list_staged, read_footer
from pipeline.core.errors import InfraError
from pipeline.core.failures import failure_columns
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store


def rows_of(num_rows: int) -> pa.Table:
    ids = [f"r{row}" for row in range(num_rows)]
    return pa.table({"row_id": ids, **failure_columns([None] * num_rows)})


@pytest.mark.parametrize("num_rows", [0, 3, 5])
def test_a_slice_of_another_number_of_rows_than_its_key_is_not_staged(
    tmp_path: Path, num_rows: int
):
    store = Store(str(tmp_path))
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    with pytest.raises(InfraError, match=f"slice 7-10-14: has {num_rows} rows, expected 4"):
        writer.write(SliceKey(7, 10, 14, is_last=False), {}, rows_of(num_rows))
    assert store.list_files() == []


def test_a_staged_slice_is_found_by_its_key_and_says_what_it_holds(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(7, 10, 14, is_last=False)
    staged = StagingWriter(store, "staging", "r", "zstd", {}).write(key, {}, rows_of(4))
    found = list_staged(store, "staging")
    assert [*found] == [key]
    footer = read_footer(store, found[key].path)
    assert (footer.name, footer.num_rows, footer.run_id) == (staged.name, 4, "r")


def test_of_two_attempts_at_a_slice_the_first_by_name_counts(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(0, 0, 4, is_last=True)
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    names = sorted(writer.write(key, {}, rows_of(4)).name for _ in range(3))
    store.put("staging/notes.txt", b"")
    found = list_staged(store, "staging")
    assert {each: file.path for each, file in found.items()} == {key: f"staging/{names[0]}"}


def test_a_part_that_is_not_staged_by_this_pipeline_is_refused(tmp_path: Path):
    store = Store(str(tmp_path))
    pq.write_table(rows_of(4), tmp_path / "x.parquet")
    with pytest.raises(InfraError, match=r"x\.parquet: is not a staged part of this pipeline"):
        read_footer(store, "x.parquet")
