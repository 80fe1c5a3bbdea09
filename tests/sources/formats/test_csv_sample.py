"""The first records of CSV say what its columns are, as far as the job does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.inputs.jsonl_shards import read_all

from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR
from pipeline.job.source import Source
from pipeline.sources.formats.csv import FORMAT
from pipeline.sources.listing.inputs import list_inputs
from pipeline.storage.store import Store


def source_of(folder: Path, values: list[str], **fields: Any) -> Source:
    (folder / "a.csv").write_text("".join(f"{line}\n" for line in ["t,x", *values]))
    return Source(uri=str(folder), format="csv", text_column="t", pass_through=("x",), **fields)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["1", "-20", ""], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["1e3", "nan", "-inf"], pa.float64()),
        (["9223372036854775807"], pa.int64()),
        (["9223372036854775808"], pa.string()),
        (["True", "false"], pa.bool_()),
        (["007", "12"], pa.string()),
        (["1", "x"], pa.string()),
        (["1", "true"], pa.string()),
        (["1_000"], pa.string()),
        (["+1"], pa.string()),
        ([" 1"], pa.string()),
        (["", ""], pa.null()),
        (["2026-01-31"], pa.string()),
    ],
)
def test_a_column_is_proposed_as_what_all_first_values_spell_and_passed_through_as_text(
    values: list[str], dtype: pa.DataType, tmp_path: Path
):
    source = source_of(tmp_path, [f"a,{value}" for value in values])
    inputs = list_inputs(source, max_extent_rows=9)
    [shard] = inputs.shards
    assert FORMAT.first_rows(Store(inputs.root), shard, source).rows.field("x").type == dtype
    rows = read_all(source)
    assert rows.schema.field("x").type == pa.string()
    assert rows.column("x").to_pylist() == [value or None for value in values]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text_column": "b"}, r"a\.csv does not fit .* no column 'b'; there are t, x"),
        ({"pass_through": ("y",)}, "no column 'y'; there are t, x, or declare its type"),
        ({"id_column": "id"}, "no column 'id'; there are t, x"),
        ({"text_column": None, "features": ("t",)}, "column 't' holds 'a', expected a number"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(fields: dict[str, Any], words: str, tmp_path: Path):
    source = source_of(tmp_path, ["a,1"])
    given = {"uri": source.uri, "format": "csv", "text_column": "t", **fields}
    with pytest.raises(JobError, match=words):
        list_inputs(Source(**given), max_extent_rows=9)


def test_texts_may_look_like_numbers(tmp_path: Path):
    assert read_all(source_of(tmp_path, ["12,1", "13,2"])).column(ERROR).null_count == 2
