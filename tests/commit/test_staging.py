"""A slice is staged whole, in one put, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit.staging import StagingWriter, list_staged, read_footer
from pipeline.core.aside import NO_RESULT, set_aside
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


def test_rows_that_were_set_aside_are_staged_in_their_places_and_counted(tmp_path: Path):
    store, key = Store(str(tmp_path)), SliceKey(7, 10, 14, is_last=False)
    writer = StagingWriter(store, "staging", "r", "zstd", {}, facts=("fact", "not there"))
    result_of = np.array([NO_RESULT, 1, 1, NO_RESULT])
    facts = {"fact": pa.array([4, None, 6, 7]), "other": pa.array([1, 2, 3, 4])}
    some, aside = set_aside(rows_of(4), result_of, ["row_id"], facts)
    computed = some.append_column("label", pa.array(["red"]))
    staged = writer.write(key, {}, computed, aside)
    assert (staged.num_rows, staged.num_carried, staged.labels) == (4, 2, {"red": 2})
    assert staged.num_quarantined == 0
    [path] = list_staged(store, "staging").values()
    assert read_footer(store, path.path).num_carried == 2
    found = pq.read_table(tmp_path / path.path)
    assert found.column_names == [*computed.column_names, "fact"]
    assert found.column("row_id").to_pylist() == ["r0", "r1", "r2", "r3"]
    assert found.column("label").to_pylist() == [None, "red", "red", None]
    assert found.column("fact").to_pylist() == [4, None, 6, 7]
    with pytest.raises(InfraError, match="slice 7-10-14: has 4 rows, expected 1"):
        writer.write(key, {}, rows_of(4), aside)


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
