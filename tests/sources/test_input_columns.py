"""Several inputs a row: each is read as it is alone, and one that fails costs the row."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.reading import plan_job, read_whole

from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, MESSAGE, URI, columns_of_part, file_name_of, input_column

ROWS: list[dict[str, Any]] = [
    {"id": "a", "photo": b"one", "body": "x", "w": 1.0, "v": [1.0, 2.0]},
    {"id": "b", "photo": None, "body": None, "w": 2.0, "v": [1.0, 2.0]},
    {"id": "c", "photo": b"three", "body": None, "w": None, "v": [3.0, 4.0]},
    {"id": "d", "photo": b"four", "body": "z" * 30, "w": 4.0, "v": [5.0, 6.0]},
    {"id": "e", "photo": b"five", "body": "ok", "w": 5.0, "v": None},
]
INPUTS = {
    "photo": {"image_column": "photo"},
    "body": {"text_column": "body"},
    "size": {"features": ["w", "v"]},
}
SCHEMA = pa.schema(
    [
        *(("id", pa.string()), ("photo", pa.binary()), ("body", pa.string())),
        *(("w", pa.float64()), ("v", pa.list_(pa.float32(), 2))),
    ]
)


def write(folder: Path, form: str) -> None:
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), folder / "a.parquet")
        return
    lines = (json.dumps(row, default=lambda data: base64.b64encode(data).decode()) for row in ROWS)
    (folder / "a.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_row_has_all_inputs_or_says_which_one_it_lacks(form: str, tmp_path: Path) -> None:
    write(tmp_path, form)
    inputs = INPUTS if form == "parquet" else json.loads(json.dumps(INPUTS))
    if form == "jsonl":
        inputs["photo"]["image_encoding"] = "base64"
    given = {"format": form, "inputs": inputs, "id_column": "id", "max_text_bytes": 20}
    rows, plan = read_whole(tmp_path, 3, **given)
    assert plan.fields.names == ["_in_photo_image", "_in_body__text", "_in_size_features"]
    rows.validate(full=True)
    row_dicts = rows.to_pylist()
    assert [(row[ERROR], row[MESSAGE]) for row in row_dicts] == [
        (None, None),
        ("null_input", "input 'photo': photo is null"),
        ("null_input", "input 'body': body is null"),
        ("too_large", "input 'body': body has 30 bytes, the limit is 20"),
        ("null_input", "input 'size': feature v is null"),
    ]
    assert row_dicts[0]["_in_photo_image"] == b"one"
    assert row_dicts[0]["_in_body__text"] == "x"
    assert row_dicts[0]["_in_size_features"] == [1.0, 1.0, 2.0]
    for row in row_dicts[1:]:
        assert row["_in_photo_image"] is row["_in_body__text"] is None
    assert [file_name_of(name) for name in plan.fields.names] == [
        *("photo_image", "body_text", "size_features")
    ]


def test_uris_of_the_first_input_are_those_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("l0", "l1", "r0"):
        (tmp_path / name).write_bytes(name.encode())
    links = {"left": ["l0", "l1", "l9"], "right": ["r0", "r9", "r0"], "n": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table(links), tmp_path / "in" / "a.parquet")
    rows, _ = read_whole(
        tmp_path / "in",
        9,
        inputs={
            "n": {"features": ["n"]},
            "left": {"uri_column": "left"},
            "right": {"uri_column": "right"},
        },
        uri_roots=[str(tmp_path)],
        uri_base=str(tmp_path),
    )
    assert rows.column(URI).to_pylist() == ["l0", "l1", "l9"]
    assert rows.column(ERROR).to_pylist() == [None, "missing", "missing"]
    one, two = rows.column(MESSAGE).to_pylist()[1:]
    assert one.startswith("input 'right': ")
    assert two.startswith("input 'left': ")


def test_what_does_not_fit_names_the_input(tmp_path: Path) -> None:
    write(tmp_path, "parquet")
    for inputs, message in (
        ({"photo": {"image_column": "body"}}, "expected encoded images"),
        ({"size": {"features": ["w"]}, "t": {"text_column": "v"}}, "expected text for input 't'"),
        ({"t": {"text_column": "boby"}}, "no column 'boby'"),
    ):
        with pytest.raises(JobError) as caught:
            plan_job(tmp_path, 9, inputs=inputs)
        assert message in str(caught.value)
    with pytest.raises(JobError, match="_in_photo_image is a column that the output makes"):
        plan_job(tmp_path, 9, inputs=INPUTS, pass_through=["_in_photo_image"])


def test_inexact_numbers_name_the_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [2**24 + 1], "t": ["x"]}), tmp_path / "a.parquet")
    inputs = {"t": {"text_column": "t"}, "n": {"features": ["n"]}}
    with pytest.raises(JobError, match=r"input 'n': source\.features: n holds 16777217"):
        read_whole(tmp_path, 9, inputs=inputs)


def test_columns_go_to_the_input_with_the_longest_name() -> None:
    parts = ("image", "image_2", "image_2_b")
    columns = [input_column(part, column) for part in parts for column in ("image", "_text")]
    for part in parts:
        assert columns_of_part(part, parts, [*columns, "row_id"]) == {
            input_column(part, column): column for column in ("image", "_text")
        }
