"""Digests of rows differ exactly if their inputs differ."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.row_digests import HASH_BYTES, input_hashes, num_bytes, row_digests

HEAD = len("text_pair").to_bytes(8, "little") + b"text_pair+"
"""What comes between two values, but for a length."""
VALUES = st.none() | st.binary(max_size=3)


@example(rows=[(b"a" + HEAD + b"b", b"c"), (b"a", b"b" + HEAD + b"c")])
@given(rows=st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_rows_of_two_columns_have_one_digest_only_if_they_are_equal(
    rows: list[tuple[bytes | None, bytes | None]],
) -> None:
    table = pa.table(
        {
            "text": pa.array([first for first, _ in rows], pa.large_binary()),
            "text_pair": pa.array([second for _, second in rows], pa.large_binary()),
        }
    )
    digests = list(row_digests(table, ["text", "text_pair"]))
    assert [digest is None for digest in digests] == [row == (None, None) for row in rows]
    assert len(set(digests)) == len(set(rows))
    assert num_bytes(table, table.column_names) == sum(len(v or b"") for row in rows for v in row)


def test_a_column_counts_with_its_name() -> None:
    values = pa.array([b"a"])
    digests = {
        next(row_digests(pa.table({first: values, second: values}), [first, second]))
        for first, second in (("a", "b"), ("ab", ""), ("b", "a"))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    "column_type",
    [pa.binary(), pa.large_binary(), pa.binary(5), pa.string(), pa.large_string()],
    ids=str,
)
def test_one_column_counts_with_its_bytes_alone(column_type: pa.DataType) -> None:
    table = pa.table({"x": pa.array(["hallo", None, "hello", "hallo"]).cast(pa.string())})
    if not pa.types.is_string(column_type):
        values = [None if v is None else v.encode() for v in table.column("x").to_pylist()]
        values = (
            values if not pa.types.is_large_string(column_type) else table.column("x").to_pylist()
        )
        table = pa.table({"x": pa.array(values, column_type)})
    hallo, none, hello, again = row_digests(table, ["x"])
    assert hallo == again == hashlib.sha256(b"hallo").digest()
    assert hello == hashlib.sha256(b"hello").digest()
    assert none is None
    assert num_bytes(table, ["x"]) == 15


def test_vectors_count_with_their_values_wherever_a_table_is_cut() -> None:
    flat = pa.array([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, -0.0, 0.0], pa.float32())
    table = pa.table({"features": pa.FixedSizeListArray.from_arrays(flat, 2)})
    digests = list(row_digests(table, ["features"]))
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3
    for cut in (table.slice(1, 2), pa.concat_tables([table.slice(1, 1), table.slice(2, 1)])):
        assert list(row_digests(cut, ["features"])) == digests[1:3]
    assert num_bytes(table, ["features"]) == flat.nbytes


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None, 2, 1], pa.int64()),
        pa.array([[1], None, [1, 1], [1]], pa.list_(pa.int32())),
        pa.array([{"a": 1.5}, None, {"a": None}, {"a": 1.5}], pa.struct([("a", pa.float64())])),
    ],
    ids=["numbers", "lists", "structs"],
)
def test_values_of_other_types_count_too(values: pa.Array) -> None:
    first, none, other, again = row_digests(pa.table({"x": values}), ["x"])
    assert first == again
    assert none is None
    assert other not in (None, first)


def test_hashes_begin_the_digests_of_rows_that_have_not_failed() -> None:
    """A vector of a failed row is there, of zeros; an empty text is one, and a null is none."""
    flat = pa.array([0.0, 1.0, 0.0, 0.0], pa.float32())
    inputs = {
        "features": pa.FixedSizeListArray.from_arrays(flat, 1),
        "_text": pa.array([b"", b"a", b"", None], pa.large_binary()),
    }
    failures = [None, None, Failure(Reason.BAD_SCHEMA, "read", "x is text"), None]
    rows = pa.table({**inputs, **failure_columns(failures)})
    for names in (["features"], ["_text"], ["features", "_text"]):
        digests = [digest and digest[:HASH_BYTES] for digest in row_digests(rows, names)]
        hashes = input_hashes(rows, names)
        assert hashes.type == pa.binary(HASH_BYTES)
        assert hashes.to_pylist() == [*digests[:2], None, digests[3]]
        assert (digests[3] is None) == (names == ["_text"])
        assert (hashes[0] == hashes[3]) == (names == ["features"])
