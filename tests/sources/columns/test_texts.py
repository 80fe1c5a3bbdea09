"""Columns of texts in Parquet: of every type, and each reason for which a row fails alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.inputs.shard_columns import read_all, source_of, text, write_columns

from pipeline.core.schema import ERROR, MESSAGE, NUM_BYTES, ROW_ID, TEXT, TEXT_PAIR, text_fields
from pipeline.sources.listing.inputs import list_inputs

TEXTS = ["one", "", "zwei \u00e4\u20ac", None, "one"]
KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
}


def read(folder: Path, **fields: Any) -> pa.Table:
    source = source_of(folder, **fields)
    inputs = list_inputs(source, max_extent_rows=100)
    assert inputs.fields.equals(text_fields(has_pair="text_pair_column" in fields))
    rows = pa.concat_tables(read_all(inputs, source, slice_rows=3))
    rows.validate(full=True)
    return rows


def failed(rows: pa.Table) -> list[tuple[str, str, str]]:
    failures = rows.filter(rows.column(ERROR).is_valid())
    return [
        (row[ROW_ID], row[ERROR], row[MESSAGE])
        for row in failures.select([ROW_ID, ERROR, MESSAGE]).to_pylist()
    ]


@pytest.mark.parametrize("storage", KINDS)
def test_texts_read_the_same_whatever_the_type_of_their_column(storage: str, tmp_path: Path):
    write_columns(tmp_path, words=pa.array(TEXTS, pa.string()).cast(KINDS[storage]))
    rows = read(tmp_path, text_column="words")
    assert rows.schema.field(TEXT).type == pa.large_string()
    assert rows.column(TEXT).to_pylist() == TEXTS
    assert failed(rows) == [("a.parquet#3", "null_input", "words is null")]


def test_a_column_named_text_is_read_and_passed_through(tmp_path: Path):
    write_columns(tmp_path, text=["a", "b"], id=["x", "y"])
    rows = read(tmp_path, text_column="text", pass_through=("text",), id_column="id")
    assert rows.column("text").to_pylist() == rows.column(TEXT).to_pylist() == ["a", "b"]
    assert rows.column(ROW_ID).to_pylist() == ["x", "y"]


@pytest.mark.parametrize("is_dictionary", [False, True])
def test_a_bad_text_costs_its_row_alone(is_dictionary: bool, tmp_path: Path):
    values = [b"good", b"bad \xff", None, b"\xc3\xa4" * 8, b"\xed\xa0\x80", b"x" * 17, b"y" * 16]
    column = text(*values)
    if is_dictionary:
        indices = pa.array([0, 1, None, 3, 4, 5, 6], pa.int32())
        column = pa.DictionaryArray.from_arrays(indices, text(*(v or b"" for v in values)))
    write_columns(tmp_path, words=column)
    rows = read(tmp_path, text_column="words", max_text_bytes=16)
    good = ["good", None, None, "\u00e4" * 8, None, None, "y" * 16]
    assert rows.column(TEXT).to_pylist() == good
    assert failed(rows) == [
        ("a.parquet#1", "decode_error", "words is not UTF-8, at byte 4"),
        ("a.parquet#2", "null_input", "words is null"),
        ("a.parquet#4", "decode_error", "words is not UTF-8, at byte 0"),
        ("a.parquet#5", "too_large", "words has 17 bytes, the limit is 16"),
    ]
    assert rows.column(NUM_BYTES).to_pylist()[5] == 17


def test_a_text_that_is_too_large_is_not_looked_at(tmp_path: Path):
    write_columns(tmp_path, words=text(b"\xff" * 100, b"ok"))
    rows = read(tmp_path, text_column="words", max_text_bytes=99)
    assert rows.column(ERROR).to_pylist() == ["too_large", None]


def test_both_texts_of_a_pair_must_be_good(tmp_path: Path):
    write_columns(tmp_path, a=["1", "2", None, "4"], b=text(b"x", b"\xff", b"z", None))
    rows = read(tmp_path, text_column="a", text_pair_column="b")
    assert rows.column(TEXT).to_pylist() == ["1", None, None, None]
    assert rows.column(TEXT_PAIR).to_pylist() == ["x", None, None, None]
    assert [(row, reason) for row, reason, _ in failed(rows)] == [
        ("a.parquet#1", "decode_error"),
        ("a.parquet#2", "null_input"),
        ("a.parquet#3", "null_input"),
    ]


def test_the_first_failure_of_a_row_stays(tmp_path: Path):
    write_columns(tmp_path, id=["x", None], words=pa.array([None, None], pa.string()))
    rows = read(tmp_path, text_column="words", id_column="id")
    assert rows.column(MESSAGE).to_pylist() == ["words is null", "id is null or empty"]


def test_shards_that_cannot_be_read_leave_the_columns_as_they_are(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    rows = read(tmp_path, text_column="words", text_pair_column="more")
    assert rows.column(ERROR).to_pylist() == ["unreadable_shard"]
    assert rows.column(TEXT).null_count == rows.column(TEXT_PAIR).null_count == 1
