"""A value survives the way into a folder name and back, and every engine reads the same one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import JobError
from pipeline.core.hive_paths import (
    NULL_VALUE,
    folder_trouble,
    partition_types,
    require_folders,
    restore,
    to_segment,
    to_text,
    values_of,
)
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema
from pipeline.storage.store import Store

NAMES = {"kind": "string"}
SCHEMA = prediction_schema(
    [
        pa.field("camera", pa.string()),
        pa.field("day", pa.date32()),
        pa.field("taken_at", pa.timestamp("us")),
        pa.field("height_m", pa.float64()),
    ],
    CLASSIFY_FIELDS,
)


@given(st.text(min_size=1, max_size=40))
def test_any_text_comes_back_and_stays_one_folder(value: str):
    name = to_segment("kind", value)
    assert "/" not in name
    assert name.isprintable()
    assert name.count("=") == 1
    assert name != f"kind={NULL_VALUE}"
    assert values_of(f"predictions/date=2026-11-24/{name}/part.parquet", NAMES) == {"kind": value}


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_different_values_have_different_folders(one: str, other: str):
    assert (to_segment("kind", one) == to_segment("kind", other)) == (one == other)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("cat", "kind=cat"),
        ("a/b", "kind=a%2Fb"),
        ("a=b", "kind=a%3Db"),
        ("..", "kind=.."),
        ("50% off", "kind=50%25%20off"),
        ("\u00e9t\u00e9", "kind=\u00e9t\u00e9"),
        ("line\nbreak\x00", "kind=line%0Abreak%00"),
        (None, "kind=__HIVE_DEFAULT_PARTITION__"),
        ("__HIVE_DEFAULT_PARTITION__", "kind=%5F_HIVE_DEFAULT_PARTITION__"),
    ],
)
def test_names_are_those_that_hive_would_give(tmp_path: Path, value: str | None, name: str):
    assert to_segment("kind", value) == name
    store = Store(str(tmp_path))
    store.put(f"{name}/file", b"x")
    assert [file.path for file in store.list_files()] == [f"{name}/file"]
    if value is not None:
        assert unquote(name.partition("=")[2]) == value


def test_a_value_too_long_for_a_folder_is_refused():
    with pytest.raises(JobError, match="too long for a folder name"):
        to_segment("kind", "x" * 300)


@pytest.mark.parametrize(
    ("column_type", "values"),
    [
        (pa.string(), ["a", None, "b c"]),
        (pa.large_string(), ["a", None]),
        (pa.int16(), [-3, 0, None, 7]),
        (pa.uint64(), [2**64 - 1, None]),
        (pa.bool_(), [True, False, None]),
        (pa.date32(), [dt.date(2026, 11, 24), None]),
    ],
    ids=str,
)
def test_values_come_back_in_their_type(column_type: pa.DataType, values: list[object]):
    column = pa.chunked_array([pa.array(values, column_type)])
    types = partition_types(
        ["kind"], prediction_schema([pa.field("kind", column_type)], CLASSIFY_FIELDS)
    )
    rows = pa.table({"row_id": ["1", "2"]})
    for text, value in zip(to_text(column).to_pylist(), values, strict=True):
        path = f"{to_segment('kind', text)}/part.parquet"
        restored = restore(rows, path, types)
        assert restored.column_names == ["row_id", "kind"]
        assert restored["kind"].type == column_type
        assert restored["kind"].to_pylist() == [value, value]


def test_no_folder_stands_for_empty_text():
    assert to_text(pa.chunked_array([["", "a", None]])).to_pylist() == ["", "a", None]
    assert folder_trouble("kind", "a") == folder_trouble("kind", None) == ""
    with pytest.raises(JobError, match="kind: a value is empty text"):
        to_segment("kind", "")


@pytest.mark.parametrize("label", ["", "x" * 300])
def test_a_label_that_makes_no_folder_is_refused_before_the_run(label: str):
    require_folders(["day"], ["cat", label])
    require_folders(["label"], ["cat", "dog"])
    with pytest.raises(JobError, match=r"partition_columns: label: '.* (empty text|300 char)"):
        require_folders(["label"], ["cat", label])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["nothing"], "nothing: is no column to partition by; allowed are camera, day, label"),
        (["row_id"], "row_id: is no column to partition by"),
        (["taken_at"], r"taken_at: is timestamp\[us\]"),
        (["height_m"], "height_m: is double"),
        (["top_k"], "top_k: is list"),
    ],
)
def test_what_makes_no_folder_is_refused(columns: list[str], message: str):
    with pytest.raises(JobError, match=message):
        partition_types(columns, SCHEMA)


def test_labels_numbers_and_dates_make_folders():
    types = partition_types(["label", "label_id", "day"], SCHEMA)
    assert types == {"label": "string", "label_id": "int32", "day": "date32[day]"}
