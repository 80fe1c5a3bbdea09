"""Promise: of equal row ids the first in input order keeps its prediction."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.commit.parts.row_ids import find_duplicates, hash_ids, read_hashes, sum_hashes
from pipeline.commit.staging import StagingWriter
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store

Row = tuple[str, str | None]
"""Row id and label; a row without one has failed."""
Slices = list[tuple[SliceKey, str]]


def stage(store: Store, slices: list[list[Row]], *, has_label: bool = True) -> Slices:
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    staged_slices: Slices = []
    for index, rows in enumerate(slices):
        labels = [label for _, label in rows]
        failures = [
            Failure(Reason.EMPTY, "decode", "0 bytes") if label is None else None
            for label in labels
        ]
        ids = [row_id for row_id, _ in rows]
        columns = {"row_id": ids, "uri": ids, **failure_columns(failures)}
        columns |= {"label": pa.array(labels, pa.string())} if has_label else {}
        key = SliceKey(index, 0, len(rows), is_last=True)
        staged = writer.write(key, {}, pa.table(columns))
        staged_slices.append((key, f"staging/{staged.name}"))
    return staged_slices


def duplicates_of(
    store: Store, slices: list[list[Row]], *, has_label: bool = True
) -> dict[int, tuple[tuple[int, str | None], ...]]:
    """Slice -> its duplicates."""
    paths = stage(store, slices, has_label=has_label)
    hashes = [read_hashes(store, path) for _, path in paths]
    return {key.unit: rows for key, rows in find_duplicates(store, paths, hashes).items()}


def test_the_first_of_equal_ids_in_different_slices_stays(tmp_path: Path):
    slices: list[list[Row]] = [
        [("a", "cat"), ("b", "dog")],
        [("c", "fox"), ("a", "ant"), ("d", "bee")],
        [("e", "elk")],
        [("d", "dog"), ("a", "asp")],
    ]
    duplicates = duplicates_of(Store(str(tmp_path)), slices)
    assert duplicates == {1: ((1, "ant"),), 3: ((0, "dog"), (1, "asp"))}


def test_the_first_of_equal_ids_in_one_slice_stays(tmp_path: Path):
    duplicates = duplicates_of(Store(str(tmp_path)), [[("a", "cat"), ("b", "dog"), ("a", "fox")]])
    assert duplicates == {0: ((2, "fox"),)}


def test_a_failed_duplicate_has_no_label_and_one_without_labels_an_empty_label(
    tmp_path: Path,
):
    slices: list[list[Row]] = [[("a", "cat"), ("b", None)], [("b", "dog"), ("a", None)]]
    assert duplicates_of(Store(str(tmp_path / "1")), slices) == {1: ((0, "dog"), (1, None))}
    duplicates = duplicates_of(Store(str(tmp_path / "2")), slices, has_label=False)
    assert duplicates == {1: ((0, ""), (1, None))}


def test_different_ids_have_no_duplicates(tmp_path: Path):
    assert duplicates_of(Store(str(tmp_path)), [[("a", "x")], [("b", "x"), ("c", None)]]) == {}
    assert find_duplicates(Store(str(tmp_path)), [], []) == {}


def test_the_sum_of_hashes_depends_on_the_ids_and_not_on_their_order():
    def total(*ids: str) -> str:
        return sum_hashes(hash_ids(pa.array(ids, pa.string())).tolist())

    assert total("a", "b", "c") == total("c", "a", "b")
    assert len({total("a", "b"), total("a", "c"), total("a"), total("a", "a"), total()}) == 5
    assert total() == "0" * 16
    assert len(total(*map(str, range(1000)))) == 16
