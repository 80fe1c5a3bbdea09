"""CSV: what a record becomes, why one fails alone, and slices that are the same each time."""

from __future__ import annotations

import base64
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from support.inputs.encoded import base_image, png
from support.inputs.jsonl_shards import read_all, zstd

from pipeline.core.schema import ERROR, FEATURES, IMAGE, MESSAGE, ROW_ID, TEXT, TEXT_PAIR
from pipeline.job.features import FeatureColumn
from pipeline.job.source import Source
from pipeline.sources.formats.csv import FORMAT, CsvOptions
from pipeline.storage.store import Store

CODECS: dict[str, Any] = {".csv": bytes, ".csv.gz": gzip.compress, ".csv.zst": zstd}
WORDS: dict[str, Any] = {"text_column": "t"}


def source_of(uri: Path, **fields: Any) -> Source:
    return Source(uri=str(uri), format="csv", **{**WORDS, **fields})


def write(folder: Path, data: bytes, name: str = "a.csv", **fields: Any) -> Source:
    (folder / name).write_bytes(data)
    return source_of(folder, **fields)


def column(rows: pa.Table, name: str) -> list[Any]:
    values: list[Any] = rows.column(name).to_pylist()
    return values


@pytest.mark.parametrize("suffix", CODECS)
def test_records_are_rows_however_the_shard_is_compressed(suffix: str, tmp_path: Path):
    data = b'\xef\xbb\xbft,n\r\na,1\r\n"\xc3\xa4\r\n""b""",2\r\n\r\n" ",3'
    rows = read_all(write(tmp_path, CODECS[suffix](data), f"x{suffix}"))
    assert column(rows, TEXT) == ["a", '\u00e4\r\n"b"', " "]
    assert column(rows, ROW_ID) == [f"x{suffix}#{row}" for row in range(3)]
    assert rows.column(ERROR).null_count == 3


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'"x"y,1', "decode_error", "line 3 is not CSV: ',' expected after '\"'"),
        (b"x", "decode_error", "line 3 has 1 fields, expected 2 as there are columns"),
        (b"x,1,2", "decode_error", "line 3 has 3 fields, expected 2 as there are columns"),
        (b"x\xff,1", "decode_error", "line 3 is not UTF-8"),
        (b",1", "null_input", "t is null"),
        (b"NULL,1", "null_input", "t is null"),
        (b"x,1.5", "bad_schema", "n cannot be int64"),
        (b"x" * 300 + b",1", "too_large", "t has 300 bytes, the limit is 200"),
    ],
)
def test_a_bad_record_costs_its_row_alone(line: bytes, reason: str, message: str, tmp_path: Path):
    source = write(
        tmp_path,
        b"t,n\na,1\n" + line + b"\nb,2\n",
        pass_through=("n",),
        casts={"n": "int64"},
        options={"nulls": ["", "NULL"]},
        max_text_bytes=200,
    )
    rows = read_all(source)
    assert column(rows, TEXT)[::2] == ["a", "b"]
    assert column(rows, ERROR) == [None, reason, None]
    assert message in column(rows, MESSAGE)[1]
    assert column(rows, "n")[::2] == [1, 2]


def test_a_shard_whose_header_lacks_a_column_is_one_row(tmp_path: Path):
    write(tmp_path, b"t\na\n", "a.csv")
    write(tmp_path, b"text\nb\nc\n", "b.csv")
    write(tmp_path, b"t,t\nb,c\n", "c.csv")
    write(tmp_path, b"n,t\n1,d\n", "d.csv")
    rows = read_all(source_of(tmp_path))
    assert column(rows, ROW_ID) == ["a.csv#0", "b.csv", "c.csv", "d.csv#0"]
    assert column(rows, TEXT)[::3] == ["a", "d"], "the header says where a column is"
    assert column(rows, ERROR)[1:3] == ["unreadable_shard"] * 2
    assert column(rows, MESSAGE)[1] == (
        "its header has column 't' 0 times, expected once; it has text"
    )


@pytest.mark.parametrize("data", [b"", b"t,n\n", b"\n\n", b"t"])
def test_a_shard_without_records_has_no_rows(data: bytes, tmp_path: Path):
    assert read_all(write(tmp_path, data)).num_rows == 0


@pytest.mark.parametrize("data", ["t\na\n".encode("utf-16"), b'"t\na\n', b"t\rn\na,1\n"])
def test_a_shard_without_a_header_that_can_be_read_is_one_row(data: bytes, tmp_path: Path):
    rows = read_all(write(tmp_path, data))
    assert column(rows, ROW_ID) == ["a.csv"]
    assert column(rows, ERROR) == ["unreadable_shard"]


def test_shards_without_a_header_and_with_tabs(tmp_path: Path):
    source = write(
        tmp_path, b"1\ta,b\n2\t\n", "x.tsv", options={"columns": ["n", "t"], "nulls": []}
    )
    assert column(read_all(source), TEXT) == ["a,b", ""]
    assert CsvOptions().dialect("x.tsv/a.csv")["delimiter"] == ",", "folders have no delimiter"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delimiter": ",,"}, r"options\.delimiter: String should have at most 1 character"),
        ({"delimiter": '"'}, "delimiter, quote and escape must differ"),
        ({"escape": '"'}, "delimiter, quote and escape must differ"),
        ({"columns": ["a", "a"]}, "name each column once"),
        ({"decimal": ",", "thousands": ","}, "decimal and thousands must differ"),
        ({"encoding": "utf-16"}, r"options\.encoding: Input should be 'utf-8', 'latin-1'"),
        ({"nulls": ""}, r"options\.nulls: Input should be a valid"),
        ({"separator": ";"}, r"options\.separator: unknown key, did you mean delimiter\?"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        source_of(Path("in"), options=options)


def test_ids_pairs_images_and_uris(tmp_path: Path):
    image = png(base_image(1))
    (tmp_path / "x.png").write_bytes(image)
    data = "id,a,b,i,u\n007,one,two," + base64.b64encode(image).decode() + ",x.png\n,x,y,,\n"
    write(tmp_path, data.encode())
    rows = read_all(source_of(tmp_path, text_column="a", text_pair_column="b", id_column="id"))
    assert column(rows, ROW_ID) == ["007", "a.csv#1"]
    assert column(rows, ERROR) == [None, "null_input"]
    assert (column(rows, TEXT)[0], column(rows, TEXT_PAIR)[0]) == ("one", "two")
    uri = {"uri": str(tmp_path / "*.csv"), "format": "csv"}
    in_base64 = Source(**uri, image_column="i", image_encoding="base64")
    for source in (in_base64, Source(**uri, uri_column="u")):
        rows = read_all(source)
        assert column(rows, IMAGE)[0] == image
        assert column(rows, ERROR) == [None, "null_input"]


def test_features_are_numbers_categories_and_dates(tmp_path: Path):
    lines = ["age,is_new,plan,seen", "1.5,True,pro,2026-01-05", ",False,basic,2026-01-06"]
    lines += ["2e400,true,pro,2026-01-06", "x,true,pro,"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    features = (
        *("age", "is_new"),
        FeatureColumn(column="plan", categories=("basic", "pro"), encoding="index", null="nan"),
        FeatureColumn(column="seen", read_as="weekday", null=9),
    )
    source = Source(uri=str(tmp_path), format="csv", features=features, null_features="zero")
    rows = read_all(source)
    assert column(rows, FEATURES)[:2] == [[1.5, 1, 1, 0], [0, 0, 0, 1]]
    assert column(rows, ERROR) == [None, None, "bad_schema", "bad_schema"]
    assert column(rows, MESSAGE)[2] == "age is '2e400', which double does not hold"
    assert "age cannot be double" in column(rows, MESSAGE)[3]


NUMBERS = {
    (",", "."): ["16536,83", "1.234.567,5", "12.345", "-7", ",5", "1e3", "0,1"],
    (",", " "): ["16 536,83", "12 345", "-1 234,0"],
    (",", None): ["16536,83", "-,5"],
    (".", ","): ["16,536.83", "1,234,567", "12.345"],
    (".", "'"): ["16'536.83", "12"],
}


@pytest.mark.parametrize(("decimal", "thousands"), NUMBERS)
def test_numbers_are_read_as_pandas_reads_them_and_texts_stay(
    decimal: str, thousands: str | None, tmp_path: Path
):
    texts = NUMBERS[decimal, thousands]
    data = "\n".join(["a title", "t;n", *(f"{text};{text}" for text in texts), "x;1_0", "x;"])
    options = {"delimiter": ";", "skip_rows": 1, "decimal": decimal, "thousands": thousands}
    (tmp_path / "a.csv").write_text(data, encoding="cp1252")
    source = source_of(
        tmp_path, text_column=None, features=("n",),
        pass_through={"as_written": "t", "cast": "n"},
        casts={"cast": "double"}, options={**options, "encoding": "cp1252"}, null_features="nan",
    )  # fmt: skip
    rows = read_all(source)
    signs = {"decimal": decimal, "thousands": thousands}
    whole = "\n".join(["t;n", *(f"{text};{text}" for text in texts)])
    expected = pandas.read_csv(io.StringIO(whole), sep=";", dtype={"t": str}, **signs).n
    assert column(rows, ERROR) == [*[None] * len(texts), "bad_schema", None]
    assert column(rows, "cast")[: len(texts)] == [*expected]
    assert [value for [value] in column(rows, FEATURES)[: len(texts)]] == [*np.float32(expected)]
    assert column(rows, "as_written")[: len(texts)] == texts
    store = Store(str(tmp_path))
    shard = store.stat("a.csv")
    assert shard is not None
    assert FORMAT.first_rows(store, shard, source).rows.column("n").type == pa.string(), "1_0"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"decimal": ","}, "1.5"),
        ({"decimal": ",", "thousands": "."}, "1.23"),
        ({"thousands": ","}, "1,23"),
        ({"thousands": ","}, "12,,345"),
        ({"decimal": ","}, "1,2,3"),
    ],
)
def test_a_number_that_is_written_otherwise_costs_its_row(
    options: dict[str, Any], text: str, tmp_path: Path
):
    data = f"n;t\n1;x\n{text};x\n".encode()
    source = write(
        tmp_path, data, text_column=None, features=("n",), options={"delimiter": ";", **options}
    )
    rows = read_all(source)
    assert column(rows, ERROR) == [None, "bad_schema"]
    assert f"'{text}'" in column(rows, MESSAGE)[1]


@pytest.mark.parametrize("null_features", ["quarantine", "zero"])
def test_a_folder_that_is_no_number_costs_the_rows_of_its_shard(
    null_features: str, tmp_path: Path
) -> None:
    for name in ("size=1", "size=unknown"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_bytes(b"age\n30\n40\n")
    features = {"text_column": None, "features": ("age", "size"), "null_features": null_features}
    rows = read_all(source_of(tmp_path, **features))
    assert column(rows, FEATURES)[:2] == [[30.0, 1.0], [40.0, 1.0]]
    assert column(rows, ERROR) == [None, None, "bad_schema", "bad_schema"]
    assert column(rows, MESSAGE)[2].startswith("column 'size' is 'unknown' in the names of the")
