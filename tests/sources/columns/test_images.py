"""Images in base64: in text and binary, as URIs, and what is no base64."""

from __future__ import annotations

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import read_all, source_of

from pipeline.core.schema import ERROR, IMAGE, MESSAGE
from pipeline.sources.listing.inputs import list_inputs

DATA = bytes(range(256)) * 2
CODED = base64.b64encode(DATA).decode()
KINDS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view())


def read(folder: Path, column: pa.Array, **fields: object) -> pa.Table:
    pq.write_table(pa.table({"image": column}), folder / "a.parquet")
    source = source_of(folder, image_encoding="base64", **fields)
    return pa.concat_tables(read_all(list_inputs(source, max_extent_rows=100), source))


@pytest.mark.parametrize("dtype", [*KINDS, pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_base64_is_decoded_whatever_the_type_of_its_column(dtype: pa.DataType, tmp_path: Path):
    rows = read(tmp_path, pa.array([CODED, None, CODED], pa.string()).cast(dtype))
    assert rows.column(IMAGE).to_pylist() == [DATA, None, DATA]
    assert rows.column(MESSAGE).to_pylist() == [None, "image is null", None]


@pytest.mark.parametrize(
    "value",
    [
        f"data:image/png;base64,{CODED}",
        f"DATA:;Base64,{CODED}",
        base64.encodebytes(DATA).decode(),
        f" {CODED}\r\n",
    ],
)
def test_uris_and_line_ends_are_taken_off(value: str, tmp_path: Path):
    assert read(tmp_path, pa.array([value])).column(IMAGE).to_pylist() == [DATA]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("***", "image is not base64"),
        (CODED[:-1], "image is not base64: Incorrect padding"),
        (CODED + "=", "image is not base64"),
        ("QUJD=QUJD", "image is not base64"),
        ("\u00e4", "image is not base64"),
        ("data:image/png,abc", "image is a data: URI without ;base64"),
        ("https://example.com/a.png", "image is not base64"),
    ],
)
def test_what_is_no_base64_costs_its_row(value: str, words: str, tmp_path: Path):
    rows = read(tmp_path, pa.array([CODED, value]))
    assert rows.column(ERROR).to_pylist() == [None, "decode_error"]
    assert words in rows.column(MESSAGE).to_pylist()[1]


def test_the_size_is_checked_before_decoding(tmp_path: Path):
    values = [CODED, base64.b64encode(DATA + b"x").decode(), "*" * 5000, "*" * 800]
    rows = read(tmp_path, pa.array(values), max_image_bytes=len(DATA))
    assert rows.column(ERROR).to_pylist() == [None, "too_large", "too_large", "too_large"]
    assert rows.column(MESSAGE).to_pylist()[1] == "513 bytes, the limit is 512"
