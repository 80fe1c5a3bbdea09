"""Categories of any type of column find their places; others and nulls do as the job says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.inputs.jsonl_shards import read_all as read_lines
from support.inputs.jsonl_shards import source_of as lines_of
from support.inputs.shard_columns import (
    features_of,
    read_features,
    write_columns,
)

from pipeline.core.errors import JobError
from pipeline.sources.features.encodings import NONE, find_categories

PLANS = ("basic", "pro", "1")


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["pro", None, "x", "1"]),
        pa.array(["pro", None, "x", "1"], pa.large_string()),
        pa.array(["pro", None, "x", "1"], pa.string_view()),
        pa.array(["pro", None, "x", "1"]).dictionary_encode(),
        pa.array(["?", "pro", None, "x", "1"]).dictionary_encode().slice(1),
        pa.DictionaryArray.from_arrays(
            pa.array([1, 2, 0, 3], pa.int8()), pa.array(["x", "pro", None, "1"])
        ),
    ],
    ids=["text", "large", "view", "dictionary", "slice", "null in dictionary"],
)
def test_text_is_found_however_it_is_stored(column: pa.Array):
    result = find_categories(column, PLANS)
    assert result.codes.tolist() == [1, NONE, NONE, 2]
    assert result.is_null is not None
    assert result.is_null.tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [pa.int8(), pa.int64(), pa.uint8(), pa.uint64()], ids=str)
def test_whole_numbers_are_their_text(dtype: pa.DataType):
    column = pa.array([1, 7, None, 100], dtype)
    result = find_categories(column, ("x", "100", "01", "-5", "1", "99999999999999999999999"))
    assert result.codes.tolist() == [4, NONE, NONE, 1]


def test_booleans_are_true_and_false():
    column = pa.array([True, None, False])
    assert find_categories(column, ("false", "true")).codes.tolist() == [1, NONE, 0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"unknown": "own"}, [[0, 1, 0], "null_input", [0, 0, 1]]),
        ({"unknown": "own", "null": "unknown"}, [[0, 1, 0], [0, 0, 1], [0, 0, 1]]),
        ({"unknown": "zero", "null": "zero"}, [[0, 1], [0, 0], [0, 0]]),
        ({"null": "unknown"}, [[0, 1], "null_input", "bad_schema"]),
        ({}, [[0, 1], "null_input", "bad_schema"]),
        ({"encoding": "index", "unknown": "own"}, [[1], "null_input", [2]]),
        ({"encoding": "index", "unknown": "own", "null": "unknown"}, [[1], [2], [2]]),
    ],
    ids=str,
)
def test_unknown_values_and_nulls_do_as_declared(
    more: dict[str, str], expected: list[Any], tmp_path: Path
):
    write_columns(tmp_path, plan=["pro", None, "gold"])
    table = read_features(tmp_path, {"column": "plan", "categories": ["basic", "pro"], **more})
    rows = zip(table["features"].to_pylist(), table["error"].to_pylist(), strict=True)
    assert [error or vector for vector, error in rows] == expected


def test_messages_name_the_column_and_the_value(tmp_path: Path):
    write_columns(tmp_path, plan=["gold", None, "basic", None], a=[1.0, 2.0, None, None])
    table = read_features(tmp_path, "a", {"column": "plan", "categories": ["basic"]})
    assert table["message"].to_pylist() == [
        "feature plan is 'gold': no category of it",
        "feature plan is null",
        "feature a is null",
        "features a, plan are null",
    ]


def test_nulls_have_a_policy_for_each_column(tmp_path: Path):
    write_columns(tmp_path, a=[None, 1.0], b=[None, 2.0], c=[None, 3], d=pa.array([None, 4.0]))
    table = read_features(
        tmp_path,
        *({"column": "a", "null": -1}, {"column": "b", "null": "nan"}),
        *({"column": "c", "null": "zero"}, "d"),
        null_features="zero",
    )
    [first, second] = table["features"].to_pylist()
    assert (first[0], np.isnan(first[1]), first[2:]) == (-1, True, [0, 0])
    assert second == [1, 2, 3, 4]


def test_folders_are_features(tmp_path: Path):
    for country, year in (("de", "2025"), ("fr", "__HIVE_DEFAULT_PARTITION__")):
        write_columns(tmp_path / f"country={country}" / f"year={year}", a=[0.5])
    table = read_features(
        tmp_path,
        *("a", {"column": "year", "null": -1}),
        {"column": "country", "categories": ["de", "fr"]},
        pass_through=("country", "year"),
        casts={"year": "int32"},
    )
    assert table["features"].to_pylist() == [[0.5, 2025, 1, 0], [0.5, -1, 0, 1]]
    assert table["year"].to_pylist() == [2025, None]
    assert table["country"].to_pylist() == ["de", "fr"]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1.5]), "'plan' is double, expected categories: text, whole numbers"),
        (pa.array([[1]]), "'plan' is list.*, expected categories"),
    ],
    ids=["fractions", "lists"],
)
def test_what_holds_no_categories_is_told_so(column: pa.Array, words: str, tmp_path: Path):
    write_columns(tmp_path, plan=column)
    with pytest.raises(JobError, match=words):
        read_features(tmp_path, {"column": "plan", "categories": ["a"]})


def test_json_lines_give_what_parquet_gives(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        '{"plan": "pro", "n": 3, "ok": true, "t": "2026-01-03T05:00:00Z", "x": 1}\n'
        '{"plan": null, "n": 4, "ok": false, "t": "2026-01-04", "x": 2}\n'
        '{"plan": "gold", "n": 3, "ok": true, "t": "2026-01-04", "x": 3}\n'
        '{"plan": 1.5, "n": 3, "ok": true, "t": "2026-01-04", "x": 3}\n'
        '{"plan": "pro", "n": 3, "ok": true, "t": "soon", "x": 4}\n'
    )
    features = (
        {"column": "plan", "categories": ["basic", "pro"], "null": "zero"},
        {"column": "n", "categories": [3], "unknown": "zero"},
        {"column": "ok", "categories": [False, True]},
        *({"column": "t", "read_as": "weekday"}, {"column": "t", "read_as": "hour"}),
        "x",
    )
    table = read_lines(lines_of(tmp_path, features=features_of(*features)))
    rows = zip(table["features"].to_pylist(), table["message"].to_pylist(), strict=True)
    assert [message or vector for vector, message in rows] == [
        [0, 1, 1, 0, 1, 5, 5, 1],
        [0, 0, 0, 1, 0, 6, 0, 2],
        "feature plan is 'gold': no category of it",
        "plan is a number, expected text, a whole number, true or false",
        "feature t is 'soon': no date or time",
    ]
