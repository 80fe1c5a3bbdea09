"""Test that features reach the model unchanged, or that their loss is refused or quarantined."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inputs.shard_columns import read_features, write_columns

from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.features.vectors import feature_rows


def rows_of(features: tuple[str, ...] = ("a",), **columns: Any) -> Any:
    return feature_rows(Source(uri="in", format="parquet", features=features), pa.table(columns))


@given(number=st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_inexact_beyond_those_that_float32_all_holds(number: int):
    rows = rows_of(a=pa.array([0, number, None], pa.int64()))
    is_exact = abs(number) <= 2**24
    assert rows.inexact == ({} if is_exact else {"a": number})
    assert not is_exact or int(np.float32(number)) == number


@pytest.mark.parametrize("number", [2**24 + 1, 2**53 + 1, 2**63 + 1, 2**64 - 1])
def test_large_unsigned_numbers_are_inexact(number: int):
    assert rows_of(a=pa.array([number], pa.uint64())).inexact == {"a": number}


def test_whole_numbers_that_would_be_rounded_end_the_run(tmp_path: Path):
    write_columns(tmp_path, a=pa.array([1, 16777217], pa.int64()), b=[1, 2])
    with pytest.raises(
        JobError, match=r"features: a holds 16777217 in a\.parquet.*16777216; .*los"
    ):
        read_features(tmp_path, "b", "a")
    table = read_features(tmp_path, "b", "a", lossy_features=True)
    assert table["features"].to_pylist() == [[1, 1], [2, 16777216]]
    assert table["error"].null_count == 2


def test_whole_numbers_inside_lists_count_too(tmp_path: Path):
    lists = pa.array([[1, 2], None, [3, 2**30 + 1]], pa.list_(pa.int32(), 2))
    write_columns(tmp_path, a=lists)
    with pytest.raises(JobError, match="a holds 1073741825"):
        read_features(tmp_path, "a")


@given(number=st.integers(-(10**38) + 1, 10**38 - 1), width=st.sampled_from([38, 76]))
def test_decimals_without_places_are_whole_numbers(number: int, width: int):
    dtype = pa.decimal128(38, 0) if width == 38 else pa.decimal256(76, 0)
    rows = rows_of(a=pa.array([0, number, None], dtype))
    assert rows.inexact == ({} if abs(number) <= 2**24 else {"a": number})
    # In lists, too, and beside their neighbours.
    lists = pa.FixedSizeListArray.from_arrays(pa.array([0, number, 5, 6], dtype), 2)
    assert rows_of(a=lists).inexact == rows.inexact


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0.1, 16777217.0, 1e20]),
        pa.array([decimal.Decimal("0.1"), decimal.Decimal("16777217.0")]),
    ],
    ids=["float64", "decimal"],
)
def test_fractions_are_rounded(column: pa.Array):
    assert rows_of(a=column).inexact == {}


@pytest.mark.parametrize(
    ("name", "is_exact"),
    [
        ("99999999999999999999", False),
        ("-99999999999999999999", False),
        ("16777217", False),
        ("9223372036854775809", False),
        ("9223372036854775808", False),
        ("16777216", True),
        ("2026", True),
        ("1e20", True),
        ("0" * 90 + "1", True),
        ("0" * 90 + "16777217", False),
    ],
)
def test_whole_numbers_in_the_names_of_folders_are_no_others(
    name: str, is_exact: bool, tmp_path: Path
):
    folder = tmp_path / f"year={name}"
    folder.mkdir()
    write_columns(folder, a=[0.5])
    if is_exact:
        assert read_features(tmp_path, "a", "year")["features"].to_pylist() == [
            [0.5, np.float32(float(name))]
        ]
        return
    with pytest.raises(JobError, match=f"features: year holds {int(name)} in year="):
        read_features(tmp_path, "a", "year")
    table = read_features(tmp_path, "a", "year", lossy_features=True)
    assert table["features"].to_pylist() == [[0.5, float(np.float32(float(name)))]]


def test_what_is_infinite_in_float32_only_costs_its_row(tmp_path: Path):
    write_columns(tmp_path, a=[1.0, 1e300, np.inf], b=[1.0, -1e39, 3.0])
    table = read_features(tmp_path, "a", "b")
    assert table["error"].to_pylist() == [None, "non_finite", None]
    assert table["message"][1].as_py() == "features a, b are too large for float32"
    assert table["features"].to_pylist() == [[1, 1], [0, 0], [np.inf, 3]]


@pytest.mark.parametrize(
    ("policy", "value", "costs"), [("quarantine", None, True), ("zero", 0.0, False)]
)
def test_nulls_of_float32_columns_alone_are_what_the_job_says(
    policy: str, value: float | None, costs: bool
):
    columns = {"a": [1.0, None, 3.0], "b": [4.0, 5.0, 6.0]}
    table = pa.table({name: pa.array(values, pa.float32()) for name, values in columns.items()})
    source = Source(uri="in", format="parquet", features=("a", "b"), null_features=policy)
    rows = feature_rows(source, table)
    assert rows.is_bad().tolist() == [False, costs, False]
    assert [*rows.nulls] == (["a"] if costs else [])
    assert rows.values[[0, 2]].tolist() == [[1.0, 4.0], [3.0, 6.0]]
    assert costs or rows.values[1].tolist() == [value, 5.0]


def test_a_list_that_is_null_and_a_null_inside_a_list_both_are_nulls():
    table = pa.table({"a": pa.array([[1, 2], None, [3, None]], pa.list_(pa.float32(), 2))})
    source = Source(uri="in", format="parquet", features=("a",))
    assert feature_rows(source, table).is_bad().tolist() == [False, True, True]
    source = source.model_copy(update={"null_features": "zero"})
    assert feature_rows(source, table).values.tolist() == [[1, 2], [0, 0], [3, 0]]


@pytest.mark.parametrize("has_nulls", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [pa.list_(pa.int32(), 2), pa.list_(pa.float32(), 2), pa.list_(pa.float64(), 2)],
    ids=str,
)
def test_rows_within_a_shard_have_their_own_lists(dtype: pa.DataType, has_nulls: bool):
    lists = [[2 * row, 2 * row + 1] for row in range(9)]
    column = [None if has_nulls and row == 4 else values for row, values in enumerate(lists)]
    table = pa.table({"a": pa.array(column, dtype), "b": pa.array(range(9), pa.int64())})
    source = Source(uri="in", format="parquet", features=("b", "a"), null_features="zero")
    vectors = feature_rows(source, table.slice(3, 4)).values.tolist()
    assert vectors == [[row, *(column[row] or [0, 0])] for row in range(3, 7)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan", "'plan' is dictionary.*expected numbers: text and categories become features"),
        ("name", "'name' is string, expected numbers"),
        ("country", "'country' is 'de' in the names of the folders, expected a number"),
    ],
)
def test_what_is_no_feature_is_told_what_would_be(name: str, words: str, tmp_path: Path):
    folder = tmp_path / "country=de"
    folder.mkdir()
    plan = pa.array(["free", "paid"]).dictionary_encode()
    write_columns(folder, plan=plan, name=["x", "y"], n=[1, 2])
    with pytest.raises(JobError, match=words):
        read_features(tmp_path, name)
    table = read_features(tmp_path, "n", pass_through=("country",))
    assert table["country"].to_pylist() == ["de", "de"]
