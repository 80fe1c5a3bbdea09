"""What the first JSON lines say of columns, and what is refused before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.inputs.jsonl_shards import CODECS, lines, read_all, source_of

from pipeline.commit.plan_store import _schema_from_text
from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, FEATURES, MESSAGE, feature_fields, text_fields, widths_of
from pipeline.planning.plan import schema_to_text
from pipeline.sources.lines.line_columns import SAMPLE_ROWS, type_of
from pipeline.sources.listing.inputs import Inputs, list_inputs


def listed(folder: Path, *values: Any, **fields: Any) -> Inputs:
    (folder / "a.jsonl").write_bytes(lines(*values))
    return list_inputs(source_of(folder, **{"text_column": "t", **fields}), max_extent_rows=4)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, False], pa.bool_()),
        (["a"], pa.string()),
        ([1, "a"], pa.string()),
        ([True, 1], pa.string()),
        ([2**63], pa.string()),
        ([{"a": 1}], pa.string()),
        ([[1]], pa.string()),
        ([None], pa.string()),
    ],
)
def test_the_type_of_a_column_is_what_all_first_values_are(
    values: list[Any], dtype: pa.DataType, tmp_path: Path
):
    assert type_of([value for value in values if value is not None]) == dtype
    rows = [{"t": "a", "x": value} for value in values]
    assert listed(tmp_path, *rows, pass_through=("x",)).pass_through == pa.schema([("x", dtype)])


def test_a_later_value_that_does_not_fit_costs_its_row(tmp_path: Path):
    first = [{"t": "a", "x": 1}] * SAMPLE_ROWS
    listed(tmp_path, *first, {"t": "a", "x": "late"}, {"t": "a", "x": "7"}, {"t": "a", "x": 1.5})
    rows = read_all(source_of(tmp_path, text_column="t", pass_through=("x",)))
    assert rows.column(ERROR).to_pylist()[-3:] == ["bad_schema"] * 3
    assert rows.column("x").to_pylist()[-3:] == [None] * 3
    [_, text, fraction] = rows.column(MESSAGE).to_pylist()[-3:]
    assert text == (
        "x is text, expected int64 as in the first lines; declare another type with source.casts"
    )
    assert "x cannot be int64" in fraction


def test_casts_declare_types_also_of_columns_that_come_later(tmp_path: Path):
    casts = {"x": "timestamp[us]", "late": "int32"}
    declared = listed(
        tmp_path, {"t": "a", "x": "2026-11-24"}, casts=casts, pass_through=("x", "late")
    ).pass_through
    assert declared == pa.schema([("x", pa.timestamp("us")), ("late", pa.int32())])


def test_a_folder_names_a_column_before_its_lines(tmp_path: Path):
    folder = tmp_path / "day=2026-11-24"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines({"t": "a", "day": 5}, {"t": "b"}))
    rows = read_all(source_of(tmp_path, text_column="t", pass_through=("day",)))
    assert rows.column("day").to_pylist() == ["2026-11-24"] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text_column": "u"}, "a.jsonl does not fit the job; in its first 2 rows: no column 'u'"),
        ({"text_column": "n"}, "column 'n' holds a number, expected text"),
        ({"text_column": "n.x"}, "no column 'n.x': n is no object"),
        ({"text_pair_column": "u"}, "no column 'u'; there are l, n, o, t, v"),
        ({"id_column": "u"}, "no column 'u'"),
        ({"pass_through": ("u",)}, "no column 'u'; .*or declare its type with source.casts"),
        ({"pass_through": ("label",)}, "label is a column that the output makes"),
        ({"features": ("t",), "text_column": None}, "'t' holds text, expected a number"),
        ({"features": ("l",), "text_column": None}, "'l' holds an empty list, expected a number"),
        ({"features": ("o",), "text_column": None}, "'o' is null, expected numbers"),
        (
            {"features": ("v",), "text_column": None, "pass_through": ("v",)},
            "a list of numbers that is not passed through",
        ),
        ({"pass_through": ("t",), "casts": {"t": "int63"}}, "source.casts.t = 'int63'"),
        (
            {"pass_through": ("t",), "casts": {"t": "timestamp[us, tz=Mars]"}},
            "tz=Mars.': no Arrow type; write .*timestamp.us, tz=UTC.",
        ),
        (
            {"pass_through": ("t",), "casts": {"t": "decimal128(99, 2)"}},
            "decimal128.99, 2.': no Arrow type",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(fields: dict[str, Any], words: str, tmp_path: Path):
    values = [{"t": "a", "n": 5, "v": [1], "l": [], "o": None}, {"t": "b"}]
    with pytest.raises(JobError, match=words) as caught:
        listed(tmp_path, *values, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", CODECS)
def test_the_first_shard_with_an_object_counts(suffix: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"no JSON\n[]\n")
    (tmp_path / "c.jsonl").write_bytes(bytes(100))
    (tmp_path / f"d{suffix}").write_bytes(CODECS[suffix](lines(b"?\n", {"t": "a", "x": 1})))
    source = source_of(tmp_path, text_column="t", pass_through=("x",))
    inputs = list_inputs(source, max_extent_rows=4)
    assert inputs.pass_through == pa.schema([("x", pa.int64())])
    assert inputs.fields.equals(text_fields(has_pair=False))
    assert [extent.num_rows for extent in inputs.extents] == [0] * 4


def test_lengths_of_lists_of_numbers_come_through_the_plan(tmp_path: Path):
    fields = listed(
        tmp_path, {"a": 1, "v": [1, 2], "w": [3]}, features=("v", "a", "w"), text_column=None
    ).fields
    assert fields.equals(feature_fields(4))
    assert widths_of(fields) == (2, 0, 1)
    again = _schema_from_text(schema_to_text(fields))
    assert widths_of(again) == (2, 0, 1)
    assert again.field(FEATURES).type.list_size == 4
    numbers = listed(tmp_path, {"a": 1}, features=("a",), text_column=None).fields
    assert widths_of(numbers) == ()
