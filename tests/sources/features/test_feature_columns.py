"""Features that stay texts, and numbers in float64: as in the shards, or their row fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import (
    read_features,
    text,
    write_columns,
)
from support.runs.reading import read_whole

from pipeline.core.errors import JobError
from pipeline.core.schema import FEATURES

PLAN = {"column": "plan", "read_as": "text"}
WIDE = {"column": "n", "read_as": "float64"}


def reasons(table: pa.Table) -> list[tuple[str | None, str | None]]:
    rows = table.select(["error", "message"]).to_pylist()
    return [(row["error"], row["message"]) for row in rows]


@pytest.mark.parametrize(
    "dtype",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_texts_of_every_type_stay_as_they_are(tmp_path: Path, dtype: pa.DataType):
    texts = ["basic", "", "Zürich\0x", "basic"]
    write_columns(tmp_path, n=pa.array([1.0, 2.0, 3.0, 4.0]), plan=pa.array(texts).cast(dtype))
    table = read_features(tmp_path, "n", PLAN)
    assert table.column("_feature_plan").to_pylist() == texts
    assert table.column("_feature_plan").type == pa.large_string()
    assert table.column(FEATURES).to_pylist() == [[1.0], [2.0], [3.0], [4.0]]


def test_texts_alone_need_no_vector(tmp_path: Path):
    write_columns(tmp_path, plan=["a", "b"])
    table = read_features(tmp_path, PLAN)
    assert FEATURES not in table.column_names
    assert table.column("_feature_plan").to_pylist() == ["a", "b"]


def test_what_is_no_text_costs_its_row_alone(tmp_path: Path):
    write_columns(tmp_path, n=[1.0] * 4, plan=text(b"ok", None, b"\xff", b"x" * 90))
    table = read_features(tmp_path, "n", PLAN, null_features="zero")
    assert [reason for reason, _ in reasons(table)] == [*(None, "null_input", "decode_error", None)]
    assert reasons(table)[1][1] == "feature plan is null"
    assert table.column("_feature_plan").to_pylist() == ["ok", None, None, "x" * 90]


def test_another_type_in_the_first_shard_is_refused(tmp_path: Path):
    write_columns(tmp_path, plan=[1, 2])
    with pytest.raises(JobError, match="'plan' is int64, expected text, as which the model takes"):
        read_features(tmp_path, PLAN)
    write_columns(tmp_path, n=["a", "b"])
    with pytest.raises(JobError, match="'n' is string, expected numbers"):
        read_features(tmp_path, WIDE)


def test_float64_holds_what_float32_does_not(tmp_path: Path):
    numbers = [2**53, -(2**53), 16777217, 7]
    write_columns(tmp_path, n=numbers, x=[0.1, 1e300, -0.0, 1 / 3])
    table = read_features(tmp_path, WIDE, "x")
    assert table.schema.field(FEATURES).type == pa.list_(pa.float64(), 2)
    vectors = np.array(table.column(FEATURES).to_pylist())
    assert vectors[:, 0].tolist() == numbers
    assert vectors[:, 1].tolist() == [0.1, 1e300, -0.0, 1 / 3]
    assert reasons(table) == [(None, None)] * 4


def test_a_whole_number_beyond_float64_ends_the_run(tmp_path: Path):
    write_columns(tmp_path, n=[1, 2**53 + 1])
    with pytest.raises(
        JobError, match=r"n holds 9007199254740993 in a\.parquet, which float64 rou"
    ):
        read_features(tmp_path, WIDE)
    assert read_features(tmp_path, WIDE, lossy_features=True).num_rows == 2


def test_a_column_in_the_names_of_the_folders_is_a_text(tmp_path: Path):
    (tmp_path / "plan=pro").mkdir()
    pq.write_table(pa.table({"n": [1.0, 2.0]}), tmp_path / "plan=pro" / "a.parquet")
    assert read_features(tmp_path, "n", PLAN).column("_feature_plan").to_pylist() == ["pro", "pro"]


def test_lines_give_the_same(tmp_path: Path):
    lines = [
        {"n": 16777217, "plan": "pro"},
        {"n": 0.1, "plan": ""},
        {"n": 3, "plan": None},
        {"n": 4, "plan": 5},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table, _ = read_whole(tmp_path, 9, format="jsonl", features=[WIDE, PLAN])
    assert [reason for reason, _ in reasons(table)] == [None, None, "null_input", "bad_schema"]
    assert table.column(FEATURES).to_pylist()[:2] == [[16777217.0], [0.1]]
    assert table.column("_feature_plan").to_pylist()[:2] == ["pro", ""]


def test_a_line_with_a_number_that_float64_may_have_rounded_ends_the_run(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"n": 9007199254740993}\n')
    with pytest.raises(JobError, match=r"holds 9007199254740992 in .* beyond float64"):
        read_whole(tmp_path, 9, format="jsonl", features=[WIDE])
