"""`source.where`: the rows that are read are those that DuckDB finds for the same condition."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.delta_tables import DeltaTable
from support.inputs.iceberg_tables import TABLE, catalog_at, folder_of, options_at
from support.inputs.lake_rows import rows_of

from pipeline.core.errors import JobError
from pipeline.job.condition import columns_in, parse
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import Inputs, list_inputs

NUM_TABLES, NUM_CONDITIONS = 30, 25
COLUMNS: dict[str, list[pa.DataType]] = {
    "text": [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())],
    "number": [pa.int8(), pa.int64(), pa.uint8(), pa.uint64()],
    "ratio": [pa.float64(), pa.float32()],
    "price": [pa.decimal128(9, 2), pa.decimal128(30, 1)],
    "is_new": [pa.bool_()],
    "day": [pa.date32()],
    "seen": [pa.timestamp("us"), pa.timestamp("s"), pa.timestamp("us", "UTC")],
}
TEXTS = ["", "a", "ab", "b", "B", "it's", "\u00e9", "z" * 70]


def a_value(chance: random.Random, name: str) -> Any:
    number = chance.randrange(12)
    made: dict[str, Any] = {
        "text": chance.choice(TEXTS),
        "number": number,
        "ratio": chance.choice([number / 4, -number / 4, float("nan"), 0.1, -0.0]),
        "price": Decimal(number) / 2,
        "is_new": number > 5,
        "day": dt.date(2026, 11, 1 + number),
        "seen": dt.datetime(2026, 11, 1, 2 * number),
    }
    return made[name]


def a_table(chance: random.Random) -> pa.Table:
    """Rows with a number of their own, `n`; neighbours are alike, so that statistics decide."""
    num_rows = chance.randrange(1, 60)
    columns: dict[str, Any] = {"n": pa.array(range(num_rows))}
    for name, types in COLUMNS.items():
        values = [a_value(chance, name) for _ in range(num_rows)]
        if chance.random() < 0.6 and name != "ratio":
            values.sort()
        empty = chance.choice([0.0, 0.1, 1.0]) if chance.random() < 0.5 else 0.0
        if name == "ratio" and chance.random() < 0.5:
            values = sorted(0.5 if value != value else value for value in values)
            values[chance.randrange(num_rows)] = float("nan")
        filled = [None if chance.random() < empty else value for value in values]
        columns[name] = pa.array(filled, chance.choice(types))
    return pa.table(columns)


def a_literal(chance: random.Random, name: str) -> str:
    value = a_value(chance, name)
    if name == "text":
        return "'" + value.replace("'", "''") + "'"
    if name == "day":
        return chance.choice([f"date '{value}'", f"'{value}'"])
    if name == "seen":
        return chance.choice([f"timestamp '{value}'", f"'{value}'", f"date '{value.date()}'"])
    if name == "ratio":
        return str(chance.choice([0, 1, -1.5, 0.1, 2.25]))
    if name == "number":
        return str(chance.choice([value, 127, f"{value}.0"]))
    return str(value).lower()


def a_condition(chance: random.Random, depth: int = 3, names: Sequence[str] = (*COLUMNS,)) -> str:
    if depth and chance.random() < 0.6:
        one, other = (a_condition(chance, depth - 1, names) for _ in range(2))
        form = chance.choice(["({} and {})", "({} or {})", "not ({} and {})", "not ({} or {})"])
        return form.format(one, other)
    name = chance.choice(names)
    literals = [a_literal(chance, name) for _ in range(3)]
    form = chance.choice(
        [
            *(f"{{c}} {sign} {{0}}" for sign in ("=", "<>", "<", "<=", ">", ">=")),
            *("{0} < {c}", "{c} in ({0}, {1}, {2})", "{c} not in ({0}, {1})"),
            *("{c} between {0} and {1}", "{c} not between {0} and {1}"),
            *("{c} is null", "{c} is not null", "not {c} > {0}"),
        ]
    )
    return form.format(*literals, c=name if chance.random() < 0.8 else f'"{name}"')


def due(rows: pa.Table, condition: str) -> list[int]:
    """Return the numbers of the rows that DuckDB finds."""
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.register("rows", rows)
        query = f"select n from rows where {condition} order by n"
        return [n for (n,) in connection.execute(query).fetchall()]


def chosen(inputs: Inputs) -> list[tuple[str, int]]:
    """Return the path and the number of each row of an input."""
    return [(extent.path, row) for extent in inputs.extents for row in extent.numbers()]


def read(source: Source) -> list[int]:
    """Return `n` of the rows that are read, in order."""
    rows = rows_of(source, list_inputs(source, max_extent_rows=7))
    assert rows.column("error").null_count == rows.num_rows
    # If every shard is ruled out, none is opened, and there are no columns.
    vectors = rows.column("features").to_pylist() if rows.num_rows else []
    return [int(vector[0]) for vector in vectors]


def listed(folder: Path, where: str | None, **fields: Any) -> Inputs:
    source = source_of(folder, where, **fields)
    return list_inputs(source, max_extent_rows=7)


def source_of(folder: Path, where: str | None, **fields: Any) -> Source:
    fields = {"format": "parquet", "features": ("n",), **fields}
    return Source(uri=str(folder), where=where, **fields)


@pytest.mark.parametrize("seed", range(NUM_TABLES))
def test_the_chosen_rows_are_those_that_duckdb_finds(seed: int, tmp_path: Path):
    chance = random.Random(seed)
    rows, size = a_table(chance), chance.randrange(1, 20)
    for name, has_statistics in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        pq.write_table(
            rows, tmp_path / name / "a.parquet", row_group_size=size,
            write_statistics=has_statistics,
        )  # fmt: skip
    for _ in range(NUM_CONDITIONS):
        condition = a_condition(chance)
        expected = due(rows, condition)
        for name in ("with", "without"):
            inputs = listed(tmp_path / name, condition)
            assert [row for _, row in chosen(inputs)] == expected, (condition, name)
            assert inputs.left_out == (rows.num_rows - len(expected), 0)
    assert read(source_of(tmp_path / "with", condition)) == expected


FORMATS = ("parquet", "jsonl", "csv")
LINE_COLUMNS = {"jsonl": ("text", "number", "ratio", "is_new", "day")}
"""In JSON a date is a text, so that only the condition tells a date from a time."""
CASTS = {"number": "int64", "ratio": "float64", "is_new": "bool", "day": "date32",
         "price": "decimal128(9, 2)", "seen": "timestamp[us]"}  # fmt: skip
NULL = "null"


def fields_of(form: str, condition: str) -> dict[str, Any]:
    """Return the fields of `source` for a format, with the types of compared columns of csv."""
    casts = {name: CASTS[name] for name in columns_in(parse(condition)) if name in CASTS}
    options = {"casts": casts, "options": {"nulls": (NULL,)}}
    return {"format": form, **(options if form == "csv" else {})}


def write_rows(path: Path, rows: pa.Table, bad: Sequence[int] = ()) -> None:
    """Write a shard in the format of its suffix; of lines, some after the first are bad."""
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
        return
    lines, names = list[str](), rows.schema.names
    for row in rows.to_pylist():
        texts = [NULL if row[name] is None else str(row[name]) for name in names]
        quoted = ",".join('"' + text.replace('"', '""') + '"' for text in texts)
        lines.append(quoted if ".csv" in path.name else json.dumps(row, default=str))
    for at in bad:
        lines.insert(at, '"one",' if ".csv" in path.name else "{bad")
    header = [",".join(names)] if ".csv" in path.name else []
    data = "\n".join([*header, *lines, ""]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("seed", range(10))
def test_the_chosen_lines_are_those_that_duckdb_finds(form: str, seed: int, tmp_path: Path):
    chance, names = random.Random(seed), LINE_COLUMNS.get(form, (*COLUMNS,))
    rows = a_table(chance).select(["n", *names])
    types = {"text": pa.string(), "price": pa.decimal128(9, 2), "seen": pa.timestamp("us")}
    for place, name in enumerate(rows.schema.names):
        if name in types:
            rows = rows.set_column(place, name, rows.column(name).cast(types[name]))
    finite = [None if v is None or v != v else v for v in rows.column("ratio").to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("ratio"), "ratio", pa.array(finite))
    num_lines = rows.num_rows + 2
    bad = sorted(chance.sample(range(1, num_lines), 2))
    write_rows(tmp_path / chance.choice([f"a.{form}", f"a.{form}.gz"]), rows, bad)
    lines = [line for line in range(num_lines) if line not in bad]
    for _ in range(NUM_CONDITIONS):
        condition = a_condition(chance, names=names)
        inputs = listed(tmp_path, condition, **fields_of(form, condition))
        expected = [lines[n] for n in due(rows, condition)]
        assert [row for _, row in chosen(inputs)] == sorted([*expected, *bad]), condition
        assert inputs.left_out == (rows.num_rows - len(expected), 0)
        read_rows = rows_of(source_of(tmp_path, condition, **fields_of(form, condition)), inputs)
        failed = [
            int(row_id.rpartition("#")[2])
            for row_id, error in zip(*read_rows.select(["row_id", "error"]), strict=True)
            if error.as_py()
            for row_id in [row_id.as_py()]
        ]
        assert failed == bad, condition


def in_table(chance: random.Random, rows: pa.Table, names: list[str]) -> pa.Table:
    """Return columns with types that a lake table has."""
    types = {"text": pa.string(), "number": pa.int64(), "ratio": pa.float64(), "is_new": pa.bool_(),
             "day": pa.date32(), "seen": pa.timestamp("us", "UTC"), "n": pa.int64()}  # fmt: skip
    columns = {name: rows.column(name).cast(types[name]) for name in names}
    return pa.table(columns)


LAKE_COLUMNS = ["n", "text", "number", "ratio", "is_new", "day", "seen"]


LATER = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6)]


@pytest.mark.parametrize("mapping", ["none", "name", "id"])
@pytest.mark.parametrize("seed", [0, 1, *LATER])
def test_the_chosen_rows_of_a_delta_table_are_live_and_match(
    mapping: Any, seed: int, tmp_path: Path
):
    chance = random.Random(seed)
    table, live = DeltaTable(tmp_path, mapping, partition_by=["part"]), list[pa.Table]()
    for number in range(4):
        rows = in_table(chance, a_table(chance), LAKE_COLUMNS)
        rows = rows.set_column(0, "n", pa.array(range(100 * number, 100 * number + len(rows))))
        columns = {
            "part": pa.int32(),
            **dict(zip(rows.schema.names, rows.schema.types, strict=True)),
        }
        part = chance.choice(["1", "2", None])
        table.commit(columns, {f"{number}.parquet": rows}, given={"part": part})
        gone = sorted(chance.sample(range(len(rows)), chance.randrange(len(rows))))
        table.commit(columns, deleted={f"{number}.parquet": gone})
        kept = rows.take(pa.array([row for row in range(len(rows)) if row not in gone]))
        value = None if part is None else int(part)
        live.append(kept.append_column("part", pa.array([value] * len(kept), pa.int32())))
    everything = pa.concat_tables(live)
    if mapping != "none":  # two columns swap their names, and one is new
        keys = {name: key for name, (_, key) in table.columns.items()}
        swapped = {**columns, "day": (pa.date32(), keys["day"]), "number": (pa.int64(), keys["n"]),
                   "n": (pa.int64(), keys["number"]), "late": pa.string()}  # fmt: skip
        table.commit(swapped)
        names = {"n": "number", "number": "n"}
        everything = everything.rename_columns([names.get(n, n) for n in everything.schema.names])
        everything = everything.append_column("late", pa.nulls(len(everything), pa.string()))
    for _ in range(NUM_CONDITIONS):
        simple = a_condition(chance, 0, LAKE_COLUMNS[1:])
        forms = [a_condition(chance, 1, LAKE_COLUMNS[1:]),
                 f"part = {chance.choice('123')} or {simple}",
                 f"part is null and not {simple}", "part <> 1", "part between 0 and 1"]  # fmt: skip
        forms += ["late is null and number > 3", "late = 'x'"] if mapping != "none" else []
        condition = chance.choice(forms)
        source = Source(
            uri=str(tmp_path), format="delta", text_column="text", where=condition,
            pass_through=("n",), id_column="n",
        )  # fmt: skip
        expected = due(everything, condition)
        rows = rows_of(source, list_inputs(source, max_extent_rows=5))
        read_rows = rows.column("n").to_pylist() if rows.num_rows else []
        assert sorted(map(str, read_rows)) == sorted(map(str, expected)), condition


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_rows_of_an_iceberg_table_match(seed: int, tmp_path: Path):
    chance = random.Random(seed)
    rows = in_table(chance, a_table(chance), LAKE_COLUMNS)
    table = catalog_at(tmp_path).create_table(TABLE, rows.schema)
    table.append(rows)
    with table.update_spec() as update:  # files before have no value of the partition
        update.add_identity(chance.choice(["text", "number", "is_new", "day"]))
    for _ in range(2):
        table.append(in_table(chance, a_table(chance), LAKE_COLUMNS))
    everything = table.scan().to_arrow()
    for _ in range(NUM_CONDITIONS):
        condition = a_condition(chance, names=LAKE_COLUMNS[1:])
        source = source_of(
            folder_of(table), condition, format="iceberg", options=options_at(tmp_path)
        )
        assert sorted(read(source)) == due(everything, condition), condition


def in_folders(folder: Path, form: str) -> pa.Table:
    """Write two rows into each of some folders; return all rows, with the values of the folders."""
    rows = list[dict[str, Any]]()
    days = ["2026-11-01", "2026-11-02", "2026-11-10", "__HIVE_DEFAULT_PARTITION__"]
    for number, day in enumerate(days):
        for lang in ("de", "fr"):
            pair = [{"n": 4 * number + 2 * (lang == "fr") + i, "number": i} for i in range(2)]
            place = folder / f"day={day}" / f"lang={lang}"
            place.mkdir(parents=True)
            write_rows(place / f"a.{form}", pa.Table.from_pylist(pair))
            value = None if day.startswith("_") else dt.date.fromisoformat(day)
            rows += [{**row, "day": value, "lang": lang} for row in pair]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    ("condition", "num_unopened"),
    [
        ("day = date '2026-11-02'", 6),
        ("day = '2026-11-02' and lang = 'fr'", 7),
        ("day > date '2026-11-02' or lang = 'de'", 3),
        ("day between '2026-11-02' and '2026-11-10' and number = 1", 4),
        ("day is null", 6),
        ("day <> date '2026-11-02'", 4),
        ("number = 0 or lang = 'fr'", 0),
        ("not (lang in ('fr', 'x') or number = 0)", 4),
        ("lang = 'x'", 8),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_shards_that_their_folders_rule_out_are_not_opened(
    condition: str, num_unopened: int, form: str, tmp_path: Path
):
    rows = in_folders(tmp_path, form)
    fields = fields_of(form, condition)
    inputs = listed(tmp_path, condition, **fields)
    expected = due(rows, condition)
    assert read(source_of(tmp_path, condition, **fields)) == expected
    assert inputs.left_out.shards == num_unopened
    assert inputs.left_out.rows == 2 * (8 - num_unopened) - len(expected)
    assert {shard.path for shard in inputs.shards} == {extent.path for extent in inputs.extents}
    if len(inputs.shards) == 8 - num_unopened:  # what is not opened may be anything
        kept = {shard.path for shard in inputs.shards}
        for path in tmp_path.rglob(f"*.{form}"):
            if str(path.relative_to(tmp_path)) not in kept:
                path.write_bytes(b"PAR1 no more" if form == "parquet" else b"\0")
        assert listed(tmp_path, condition, **fields).extents == inputs.extents


def test_row_groups_that_statistics_decide_are_not_read(tmp_path: Path):
    rows = pa.table({"n": range(40), "number": range(40)})
    path = tmp_path / "a.parquet"
    pq.write_table(rows, path, row_group_size=10, write_page_checksum=True, use_dictionary=False)
    data = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in (0, 1, 3):  # damage what must not be read
        chunk = metadata.row_group(group).column(1)
        begin = chunk.data_page_offset
        data[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(bytes(data))
    assert read(source_of(tmp_path, "number between 5 and 24 and number >= 10")) == [*range(10, 25)]
    assert read(source_of(tmp_path, "number is not null")) == [*range(40)]


def test_a_shard_whose_condition_cannot_be_read_is_quarantined_as_one_row(tmp_path: Path):
    rows = pa.table({"n": range(40), "number": range(40)})
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(rows, tmp_path / name, write_page_checksum=True, use_dictionary=False)
    path = tmp_path / "a.parquet"
    begin = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[: begin + 20] + bytes(40) + data[begin + 60 :])
    source = source_of(tmp_path, "number < 3")
    read_rows = rows_of(source, list_inputs(source, max_extent_rows=7))
    assert read_rows.column("error").to_pylist() == ["unreadable_shard", None, None, None]


def test_a_struct_field_and_a_name_with_quotes_are_columns(tmp_path: Path):
    structs = [{"size": {"w": n}} if n % 4 else None for n in range(12)]
    rows = pa.table({"n": range(12), "meta": structs, "is it": [n > 5 for n in range(12)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=5)
    for condition in ('meta.size.w < 7 and "is it"', "meta.size.w is null", "meta is not null"):
        assert [row for _, row in chosen(listed(tmp_path, condition))] == due(rows, condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("Number = 1", r"source\.where: no column 'Number'; it has n, number, "),
        ("number = 'one'", r"column 'number' is int64, which 'one' does not fit"),
        ("number = true", "column 'number' is int64, which true does not fit"),
        ("text = 1", "column 'text' is string, which 1 does not fit"),
        ("text = date '2026-11-24'", "is string, which date '2026-11-24' does not fit"),
        ("is_new = 1", "column 'is_new' is bool, which 1 does not fit"),
        ("day = 3", r"column 'day' is date32\[day\], which 3 does not fit"),
        ("day = 'x'", "'x' is no date or time"),
        (
            "seen = timestamp '2026-11-24 00:00:00Z'",
            r"is timestamp\[us\], which timestamp .* does not fit",
        ),
        ("list = 1", r"column 'list' is list<.*>, which 1 does not fit"),
        ("number < 2.5", "column 'number' is int64, which 2.5 does not fit"),
        ("number < 9223372036854775808", "is int64, which 9223372036854775808 does not fit"),
        ("price = 1.005", r"is decimal128\(9, 2\), which 1.005 does not fit"),
        ("year > 5", "the folder year=old is compared with 5"),
        ("n in (1, 'a')", "column 'n' is int64, which 'a' does not fit"),
    ],
)
def test_a_condition_that_does_not_fit_the_columns_is_refused(
    condition: str, message: str, tmp_path: Path
):
    rows = {"n": [1], "number": [1], "text": ["a"], "is_new": [True], "list": [[1]],
            "price": pa.array([Decimal(1)], pa.decimal128(9, 2)),
            "day": [dt.date(2026, 11, 24)], "seen": [dt.datetime(2026, 11, 24)]}  # fmt: skip
    (tmp_path / "year=old").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "year=old" / "a.parquet")
    with pytest.raises(JobError, match=message):
        listed(tmp_path, condition)


def test_a_shard_that_lacks_the_column_is_quarantined(tmp_path: Path):
    pq.write_table(pa.table({"n": [1, 2], "number": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [3, 4]}), tmp_path / "b.parquet")
    source = source_of(tmp_path, "number > 1")
    rows = rows_of(source, list_inputs(source, max_extent_rows=7))
    assert rows.column("error").to_pylist() == [None, "bad_schema", "bad_schema"]
    assert "source.where: no column 'number'" in rows.column("message")[1].as_py()


@pytest.mark.parametrize(
    ("form", "condition", "message"),
    [
        ("csv", "number > 1", r"column 'number' is string, which 1 does not fit; source\.casts"),
        ("csv", "is_new", "column 'is_new' is string, which true does not fit"),
        ("csv", "n = 'one'", "column 'n' is double, which 'one' does not fit"),
        ("jsonl", "text > 1", "'text' holds text, but source.where compares it with a number"),
        ("jsonl", "number = 'one'", "'number' holds a number, but .* compares it with text"),
        ("jsonl", "number in (1, 'one')", "column 'number' is double, which 'one' does not fit"),
        *((form, "Number is null", "no column 'Number'; there are") for form in ("jsonl", "csv")),
    ],
)
def test_a_condition_that_does_not_fit_lines_is_refused(
    form: str, condition: str, message: str, tmp_path: Path
):
    rows = {"n": [1], "number": [1], "text": ["a"], "is_new": [True]}
    write_rows(tmp_path / f"a.{form}", pa.table(rows))
    with pytest.raises(JobError, match=message):
        listed(tmp_path, condition, format=form)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_cannot_be_judged_is_quarantined_and_not_left_out(form: str, tmp_path: Path):
    rows = pa.table({"n": range(9), "number": [*"1234567", "x", "3"]})
    if form == "jsonl":
        rows = rows.set_column(1, "number", pa.array([*range(1, 8), None, 3]))
    write_rows(tmp_path / f"a.{form}", rows)
    whole = (tmp_path / f"a.{form}").read_bytes().replace(b"null", b'"x"')
    (tmp_path / f"a.{form}").write_bytes(whole)
    packed = gzip.compress(whole + random.Random(0).randbytes(999).hex().encode() + b"\n")
    (tmp_path / f"b.{form}.gz").write_bytes(packed[:-200])
    source = source_of(tmp_path, "number < 3", **fields_of(form, "number < 3"))
    inputs = list_inputs(source, max_extent_rows=7)
    read_rows = rows_of(source, inputs)
    assert read_rows.column("row_id").to_pylist() == [
        *(f"a.{form}#{row}" for row in (0, 1, 7)),
        *(f"b.{form}.gz#{row}" for row in (0, 1, 7)), f"b.{form}.gz",
    ]  # fmt: skip
    errors = [None, None, "bad_schema"]
    assert read_rows.column("error").to_pylist() == [*errors, *errors, "unreadable_shard"]
    assert inputs.left_out == (12, 0)
