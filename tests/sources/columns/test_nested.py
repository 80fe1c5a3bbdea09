"""Inputs, ids and pass-through columns inside structs of Parquet and of JSON lines."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.badfiles import base_image, encode
from support.runs.reading import plan_job, read_whole

from pipeline.core.schema import ERROR, FEATURES, IMAGE, MESSAGE, TEXT
from pipeline.sources.listing.inputs import list_inputs

PNG = encode(base_image(1), "PNG")
ROWS: list[dict[str, Any]] = [
    {"meta": {"key": "r0", "size": {"w": 3, "h": 4}}, "photo": {"bytes": PNG, "by": "me"},
     "page": {"text": "one", "v": [1.0, 2.0]}},
    {"meta": {"key": "r1", "size": None}, "photo": None, "page": {"text": None, "v": None}},
    {"meta": {"key": "r2", "size": {"w": 5, "h": 6}}, "photo": {"bytes": None, "by": "me"},
     "page": None},
    {"meta": {"key": None, "size": {"w": None, "h": 1}}, "photo": {"bytes": PNG, "by": None},
     "page": {"text": "three", "v": [3.0, 4.0]}},
]  # fmt: skip
SIZE = pa.struct([("w", pa.int64()), ("h", pa.int64())])
SCHEMA = pa.schema(
    [
        ("meta", pa.struct([("key", pa.string()), ("size", SIZE)])),
        ("photo", pa.struct([("bytes", pa.binary()), ("by", pa.string())])),
        ("page", pa.struct([("text", pa.string()), ("v", pa.list_(pa.float32(), 2))])),
    ]
)


def write_parquet(folder: Path) -> None:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    pq.write_table(table, folder / "a.parquet", row_group_size=3)


def write_lines(folder: Path) -> None:
    def plain(value: Any) -> str:
        return base64.b64encode(value).decode()

    lines = "".join(json.dumps(row, default=plain) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(lines)


def rows_of(folder: Path, fields: Any, **source: Any) -> list[dict[str, Any]]:
    table, _ = read_whole(folder, 3, **source)
    return table.select([*fields, ERROR, MESSAGE]).to_pylist()


FORMS = {"parquet": write_parquet, "jsonl": write_lines}


@pytest.mark.parametrize("form", FORMS)
def test_texts_and_features_by_path(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path)
    texts = rows_of(tmp_path, [TEXT], format=form, text_column="page.text")
    assert [row[TEXT] for row in texts] == ["one", None, None, "three"]
    assert [row[MESSAGE] for row in texts[1:3]] == ["page.text is null"] * 2
    wanted = ["meta.size.h", "page.v"]
    rows = rows_of(tmp_path, [FEATURES], format=form, features=wanted)
    assert [row[FEATURES] for row in rows] == [[4, 1, 2], [0, 0, 0], [0, 0, 0], [1, 3, 4]]
    assert rows[1][MESSAGE] == "features meta.size.h, page.v are null"
    assert rows[2][MESSAGE] == "feature page.v is null"


@pytest.mark.parametrize("form", FORMS)
def test_images_ids_and_copies_by_path(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path)
    given = {"image_column": "photo.bytes", "id_column": "meta.key"}
    if form == "jsonl":
        given["image_encoding"] = "base64"
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write('{"meta": 7, "photo": {"bytes": "AAAA"}}\n')
    names = ["row_id", IMAGE, "meta.size.w"]
    rows = rows_of(tmp_path, names, format=form, pass_through=["meta.size.w"], **given)
    assert [tuple(row.values()) for row in rows[:4]] == [
        ("r0", PNG, 3, None, None),
        ("r1", None, None, "null_input", "photo.bytes is null"),
        ("r2", None, 5, "null_input", "photo.bytes is null"),
        (f"a.{form}#3", None, None, "null_input", "meta.key is null or empty"),
    ]
    assert [(row[ERROR], row[MESSAGE]) for row in rows[4:]] == (
        [("bad_schema", "meta.key: meta is no object")] if form == "jsonl" else []
    )


def test_a_column_whose_name_has_a_dot_is_read_by_its_name(tmp_path: Path) -> None:
    columns = {"meta.key": ["own"], "meta": [{"key": "nested"}]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text('{"meta": {"key": "nested"}, "meta.key": "own"}\n')
    for folder, form in ((tmp_path / "a.parquet", "parquet"), (tmp_path / "lines", "jsonl")):
        [row] = rows_of(folder, [TEXT], format=form, text_column="meta.key")
        assert row[TEXT] == "own"


def test_only_the_leaves_that_are_needed_count_and_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    reader, _ = plan_job(tmp_path, 3, text_column="page.text")
    of_text = list_inputs(reader.source, max_extent_rows=3).extents[0].row_bytes
    reader, _ = plan_job(tmp_path, 3, image_column="photo.bytes")
    assert 0 < of_text < list_inputs(reader.source, max_extent_rows=3).extents[0].row_bytes
