"""Predictions are read by number, from where their parts lie, and no more than is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.carried_nights import SCHEMA, Row, predictions, publish_parts

from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried.version import CarriedVersion, NotReadable, OldReader, OldRows
from pipeline.storage.store import Store

LAYOUT = Layout("date=1")
NUM_ROWS = 60
TABLE = predictions([Row(str(n), f"id-{n:02d}", "s", n) for n in range(NUM_ROWS)])
IDS = pa.schema([SCHEMA.field("row_id")])


@pytest.fixture
def version(tmp_path: Path) -> tuple[Store, CarriedVersion]:
    store = Store(str(tmp_path))
    return store, publish_parts(store, LAYOUT, 1, TABLE, [13, 14, 40], row_group_rows=5)


def read(store: Store, old: OldRows, runs: list[tuple[int, int]], schema: pa.Schema = SCHEMA):
    reader = OldReader(store, old, schema)
    firsts, counts = np.array(runs, np.int64).reshape(-1, 2).T
    keys = np.cumsum(counts) - counts
    found = list(reader.read(firsts, counts, keys))
    got = [key for _, own in found for key in own.tolist()]
    assert got == list(range(int(counts.sum())))
    return pa.concat_tables([schema.empty_table(), *(rows for rows, _ in found)]), reader


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 25)), max_size=12))
def test_any_runs_come_in_the_order_that_is_asked_for(tmp_path_factory, runs):
    store = Store(str(tmp_path_factory.getbasetemp() / "version"))
    version = publish_parts(store, LAYOUT, 1, TABLE, [13, 14, 40], row_group_rows=5)
    runs = [(first, min(count, NUM_ROWS - first)) for first, count in runs]
    found, _ = read(store, OldRows.of([version]), runs)
    expected = [TABLE.slice(first, count) for first, count in runs]
    assert found.equals(pa.concat_tables([SCHEMA.empty_table(), *expected]))


def test_numbers_go_on_from_version_to_version(version: tuple[Store, CarriedVersion]):
    store, first = version
    second = publish_parts(store, Layout("date=2"), 7, TABLE.slice(3, 9), [4])
    old = OldRows.of([first, second])
    assert read(store, old, [(NUM_ROWS - 1, 3)])[0]["row_id"].to_pylist() == [
        "id-59", "id-03", "id-04",
    ]  # fmt: skip
    part = old.only(np.array([NUM_ROWS + 5]))
    assert len(part.parts) == 1
    assert read(store, part, [(NUM_ROWS + 5, 1)])[0]["row_id"].to_pylist() == ["id-08"]


def test_single_predictions_come_by_their_numbers(version: tuple[Store, CarriedVersion]):
    store, found = version
    numbers = np.array([0, 1, 7, 13, 40, 41, 42, 59])
    reader = OldReader(store, OldRows.of([found]), SCHEMA)
    assert reader.at(numbers).equals(TABLE.take(pa.array(numbers)))
    assert reader.at(numbers[:0]).equals(TABLE.slice(0, 0))


def test_only_the_row_groups_and_columns_that_are_needed_are_read(
    version: tuple[Store, CarriedVersion],
):
    store, found = version
    old = OldRows.of([found])
    runs = [(row, 1) for row in range(15, 20)]  # one row group of the last part but one
    table, one = read(store, old, runs)
    assert table.equals(TABLE.slice(15, 5))
    _, whole = read(store, old, [(14, 26)])
    _, ids = read(store, old, [(14, 26)], IDS)
    assert one.traffic.bytes_read < whole.traffic.bytes_read
    assert ids.traffic.bytes_read < whole.traffic.bytes_read
    _, again = read(store, old, [(15, 1), (0, 1), (16, 1), (1, 1), (17, 1)])
    _, two = read(store, old, [(0, 2), (15, 3)])
    assert again.traffic == two.traffic, "row groups that alternate are read once"


def test_a_part_of_a_replaced_version_is_found_in_the_history(tmp_path: Path):
    store = Store(str(tmp_path))
    replaced = publish_parts(store, LAYOUT, 1, TABLE, [13, 14, 40], is_replaced=True)
    assert read(store, OldRows.of([replaced]), [(5, 50)])[0].equals(TABLE.slice(5, 50))


def gone(store: Store, path: str, data: bytes) -> None:
    store.delete([path])


def cut(store: Store, path: str, data: bytes) -> None:
    store.put(path, data[: len(data) // 2])


def without_footer(store: Store, path: str, data: bytes) -> None:
    store.put(path, data[:-20] + bytes(20))


def with_damaged_rows(store: Store, path: str, data: bytes) -> None:
    store.put(path, data[:4] + b"\xff" * (len(data) // 2) + data[4 + len(data) // 2 :])


def with_more_bytes(store: Store, path: str, data: bytes) -> None:
    """The same rows, as another writer has them."""
    table = pq.read_table(pa.BufferReader(data))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    store.put(path, sink.getvalue().to_pybytes())


@pytest.mark.parametrize("harm", [gone, cut, without_footer, with_damaged_rows, with_more_bytes])
def test_a_part_that_is_gone_or_damaged_cannot_be_read(
    harm: Callable[[Store, str, bytes], None], version: tuple[Store, CarriedVersion]
):
    store, found = version
    path = found.manifest.parts[2].path
    harm(store, path, store.read_bytes(path))
    with pytest.raises(
        NotReadable, match=r"part-00002-\S+: (is gone|cannot be read|has \d+ bytes)"
    ):
        read(store, OldRows.of([found]), [(0, NUM_ROWS)])


def test_a_part_of_other_rows_or_columns_cannot_be_read(version: tuple[Store, CarriedVersion]):
    store, found = version
    parts = [dataclasses.replace(p, num_rows=p.num_rows + 1) for p in found.manifest.parts]
    more = dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, parts=parts))
    with pytest.raises(NotReadable, match="has 13 rows, its manifest says 14"):
        read(store, OldRows.of([more]), [(0, 3)])
    for field in (pa.field("height", pa.int32()), pa.field("label", pa.binary(3))):
        names = [name for name in SCHEMA.names if name != field.name]
        schema = pa.schema([*(SCHEMA.field(name) for name in names), field])
        with pytest.raises(NotReadable, match=r"part-00000-\S+: has other columns: "):
            read(store, OldRows.of([found]), [(0, 3)], schema)
