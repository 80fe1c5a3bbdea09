"""What other programs write into CSV and JSON lines is published as it is written."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.inputs.jsonl_shards import read_all

from pipeline.core.schema import ERROR, FEATURES, MESSAGE
from pipeline.job.source import Source

TEXTS: Mapping[str, Sequence[str | None]] = {
    "t": ["first", "second", "third"],
    "zip": ["2134", "02134", "007"],
    "iccid": ["89014103211118510720", "89014103211118510721", "9007199254740993"],
    "code": ["1E5", "3E5", "0x1F"],
    "version": ["1.10", "1.1", "+5"],
    "flag": ["true", "FALSE", "1"],
    "on": ["2026-01-31", "31.01.2026", "2026-01-31T00:00:00Z"],
    "note": ['say "no"; never', "two\nlines, one field", " blanks "],
    "missing": ["NaN", "null", "NA"],
    "empty": [None, None, None],
}
"""Column -> texts that look like something else."""
NUMBERS: Mapping[str, Sequence[Any]] = {
    "n": [1, -2, 9007199254740993],
    "x": [1.5, -0.1, 1e300],
}
COLUMNS = {**TEXTS, **NUMBERS}


def by_duckdb(path: Path, options: str) -> None:
    table = pa.table({name: pa.array(values) for name, values in COLUMNS.items()})
    with duckdb.connect() as connection:
        connection.register("rows", table)
        connection.execute(f"copy rows to '{path}' ({options})")


def by_hand(path: Path, start: str, **dialect: Any) -> None:
    text = io.StringIO()
    writer = csv.writer(text, **dialect)
    writer.writerows([list(COLUMNS), *zip(*COLUMNS.values(), strict=True)])
    path.write_text(start + text.getvalue(), "utf-8", newline="")


def frame() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values) for name, values in COLUMNS.items()})


EXCEL = {"delimiter": ";", "lineterminator": "\r\n"}
CSV_WRITERS: Mapping[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "pandas": (lambda path: frame().to_csv(path, index=False), {}),
    "pandas with quotes": (
        lambda path: frame().to_csv(path, index=False, quoting=csv.QUOTE_ALL, sep="|"),
        {"delimiter": "|"},
    ),
    "duckdb": (lambda path: by_duckdb(path, "format csv, header"), {}),
    "polars": (lambda path: pl.DataFrame(COLUMNS).write_csv(path, include_bom=True), {}),
    "excel": (lambda path: by_hand(path, "\ufeff", **EXCEL), {"delimiter": ";"}),
    "excel as unicode text": (
        lambda path: by_hand(path, "", **{**EXCEL, "delimiter": "\t"}),
        {"delimiter": "\t"},
    ),
}
JSONL_WRITERS: Mapping[str, Callable[[Path], None]] = {
    "pandas": lambda path: frame().to_json(path, orient="records", lines=True, double_precision=15),
    "duckdb": lambda path: by_duckdb(path, "format json"),
    "polars": lambda path: pl.DataFrame(COLUMNS).write_ndjson(path),
    "python": lambda path: path.write_text(
        "".join(
            json.dumps(dict(zip(COLUMNS, row, strict=True)), separators=(" , ", " : ")) + "\n"
            for row in zip(*COLUMNS.values(), strict=True)
        )
    ),
}


def read(folder: Path, form: str, names: Sequence[str] = tuple(COLUMNS), **fields: Any) -> pa.Table:
    passed = {f"as_written_{name}": name for name in names}
    casts = {f"as_written_{name}": dtype for name, dtype in fields.pop("casts", {}).items()}
    given = {"text_column": "t", "pass_through": passed, "casts": casts, **fields}
    return read_all(Source(uri=str(folder), format=form, **given))


@pytest.mark.parametrize("program", CSV_WRITERS)
def test_a_column_of_csv_is_published_as_it_is_written(program: str, tmp_path: Path):
    path = tmp_path / "a.csv"
    write, options = CSV_WRITERS[program]
    write(path)
    rows = read(tmp_path, "csv", options=options)
    assert rows.column(ERROR).null_count == 3
    text = path.read_bytes().decode("utf-8-sig")
    written = list(csv.DictReader(io.StringIO(text, newline=""), **options))
    for name, values in COLUMNS.items():
        published = rows.column(f"as_written_{name}")
        assert published.type == pa.string()
        assert published.to_pylist() == [row[name] or None for row in written]
        assert name in NUMBERS or published.to_pylist() == values


@pytest.mark.parametrize("program", JSONL_WRITERS)
def test_a_column_of_json_lines_is_published_as_it_is_written(program: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    JSONL_WRITERS[program](path)
    lines = path.read_text("utf-8").splitlines()
    for types, casts in (({}, {}), ({"parse_int": str, "parse_float": str}, {"n", "x"})):
        rows = read(tmp_path, "jsonl", casts=dict.fromkeys(casts, "string"))
        assert rows.column(ERROR).null_count == 3, rows.column(MESSAGE)
        written = [json.loads(line, **types) for line in lines]
        for name, values in COLUMNS.items():
            published = rows.column(f"as_written_{name}").to_pylist()
            assert published == [row.get(name) for row in written]
            assert name in casts or name == "x" or published == values


MOMENT = dt.datetime(2026, 1, 31, 9, tzinfo=dt.UTC)
CASTS: Sequence[tuple[str, str, Any]] = [
    ("int64", "-12", -12),
    ("int64", "007", 7),
    ("int64", "0x1F", None),
    ("int64", "1.0", None),
    ("int64", "1E5", None),
    ("int64", "9223372036854775808", None),
    ("double", "1.10", 1.1),
    ("double", "1E5", 1e5),
    ("double", "9007199254740992", 2.0**53),
    ("double", "9007199254740993", None),
    ("double", "1e400", None),
    ("float", "16777217", None),
    ("bool", "FALSE", False),
    ("bool", "no", None),
    ("date32", "2026-01-31", MOMENT.date()),
    ("date32", "31.01.2026", None),
    ("timestamp[us]", "2026-01-31 09:00", MOMENT.replace(tzinfo=None)),
    ("timestamp[us]", "1700000000", None),
    ("timestamp[us, tz=UTC]", "2026-01-31T09:00:00Z", MOMENT),
    ("timestamp[ms, tz=Europe/Berlin]", "2026-01-31T10:00:00+01:00", MOMENT),
    ("timestamp[us,tz=+01:00]", "2026-01-31T09:00:00", None),
    ("decimal128(38, 18)", "0.123456789012345678", decimal.Decimal("0.123456789012345678")),
    ("decimal128(20,2)", "0.123", None),
    ("decimal128(4, 2)", "123.4", None),
]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(("dtype", "text", "value"), CASTS)
def test_a_declared_cast_gives_the_value_that_is_spelt_or_costs_the_row(
    form: str, dtype: str, text: str, value: Any, tmp_path: Path
):
    lines = {"csv": f't,v\na,"{text}"\n', "jsonl": json.dumps({"t": "a", "v": text})}
    if "decimal" in dtype:
        lines["jsonl"] = f'{{"t": "a", "v": {text}}}'
    (tmp_path / f"a.{form}").write_text(lines[form])
    rows = read(tmp_path, form, ["v"], casts={"v": dtype})
    assert rows.column("as_written_v").to_pylist() == [value]
    assert rows.column(ERROR).to_pylist() == ["bad_schema" if value is None else None]
    assert value is not None or rows.column(MESSAGE)[0].as_py().startswith("v ")


def test_a_feature_that_is_passed_through_is_a_number_and_the_text_that_is_written(tmp_path: Path):
    (tmp_path / "a.csv").write_text("n,m\n1.10,7\n+5,007\n")
    rows = read(tmp_path, "csv", ["n", "m"], text_column=None, features=("n", "m"))
    assert rows.column(FEATURES).to_pylist() == [[pytest.approx(1.1), 7], [5, 7]]
    assert rows.column("as_written_n").to_pylist() == ["1.10", "+5"]
    assert rows.column("as_written_m").to_pylist() == ["7", "007"]


LITERALS = ["0.123456789012345678", "100000000000000000001.25", "1e2", "-0", "1" * 50, "true"]


@pytest.mark.parametrize("neighbour", ["", '"odd": -0, '])
def test_a_column_of_text_has_the_literals_of_json_numbers(neighbour: str, tmp_path: Path):
    inside = [f'[1.10,{{"a":{number}}},"b"]' for number in LITERALS]
    lines = [f'{{{neighbour}"t": "a", "v": {value}}}\n' for value in ['"x"', *LITERALS, *inside]]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    rows = read(tmp_path, "jsonl", ["v"])
    assert rows.column("as_written_v").to_pylist() == ["x", *LITERALS, *inside]
