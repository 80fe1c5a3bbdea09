"""Test that a path leads to the value that walking the rows gives, in Parquet and in JSON lines."""

from __future__ import annotations

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.selection import quick_cases

from pipeline.sources.columns.column_path import (
    NoColumnError,
    extract,
    find,
    heads,
    paths_of,
    take_paths,
    value_at,
    with_paths,
)

LEAVES = (pa.int64(), pa.string(), pa.binary(), pa.list_(pa.float32(), 2), pa.bool_())
NAMES = ("a", "b", "a.b", "b[0]", "c d")


def random_type(dice: random.Random, depth: int) -> pa.DataType:
    choice = dice.randrange(4) if depth else 3
    if choice == 0:
        names = dice.sample(NAMES, dice.randint(1, 3))
        return pa.struct([(name, random_type(dice, depth - 1)) for name in names])
    if choice == 1:
        make = dice.choice((pa.list_, pa.large_list))
        return make(random_type(dice, depth - 1))
    if choice == 2:
        return pa.list_(random_type(dice, depth - 1), 2)
    return dice.choice(LEAVES)


def random_value(dice: random.Random, dtype: pa.DataType) -> Any:
    if dice.random() < 0.2:
        return None
    if pa.types.is_struct(dtype):
        fields = [dtype.field(index) for index in range(dtype.num_fields)]
        return {field.name: random_value(dice, field.type) for field in fields}
    if pa.types.is_fixed_size_list(dtype):
        return [random_value(dice, dtype.value_type) for _ in range(dtype.list_size)]
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return [random_value(dice, dtype.value_type) for _ in range(dice.randrange(4))]
    if pa.types.is_string(dtype):
        return dice.choice(("", "x", "yy"))
    if pa.types.is_binary(dtype):
        return dice.choice((b"", b"\xff"))
    return dice.randrange(2) if not pa.types.is_boolean(dtype) else dice.random() < 0.5


def every_path(name: str, dtype: pa.DataType) -> list[str]:
    paths = [name]
    if pa.types.is_struct(dtype):
        for field in (dtype.field(index) for index in range(dtype.num_fields)):
            paths += every_path(f"{name}.{field.name}", field.type)
    return paths


def walked(value: Any, fields: tuple[str, ...]) -> Any:
    for field in fields:
        value = None if value is None else value[field]
    return value


@pytest.mark.parametrize(
    "seed", quick_cases(((seed,) for seed in range(60)), lambda seed: seed < 15)
)
def test_a_path_leads_where_walking_the_rows_does(seed: int) -> None:
    dice = random.Random(seed)
    types = {name: random_type(dice, 3) for name in dice.sample(NAMES, 3)}
    rows = [{name: random_value(dice, dtype) for name, dtype in types.items()} for _ in range(20)]
    table = pa.Table.from_pylist(rows, pa.schema(list(types.items())))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=7)
    parquet = pq.ParquetFile(buffer)
    for name, dtype in types.items():
        for text in every_path(name, dtype):
            try:
                path = find(text, table.schema)
            except NoColumnError:  # a longer name comes first, and leads nowhere
                continue
            expected = [walked(row[path.column], path.fields) for row in rows]
            column = table.column(path.column).chunk(0)
            assert extract(column, path.fields).to_pylist() == expected, text
            assert extract(column.slice(3, 9), path.fields).to_pylist() == expected[3:12], text
            assert extract(column, path.fields).type == path.dtype
            read = parquet.read(columns=[path.column])
            assert take_paths(read, {"at": path}).column("at").to_pylist() == expected, text
            lookups = [value_at(row, text) for row in rows]
            assert [value for value, _ in lookups] == expected, text
            assert not any(trouble for _, trouble in lookups), text


def test_paths_are_columns_behind_those_of_the_schema() -> None:
    page = pa.struct([("text", pa.string()), ("size", pa.struct([("w", pa.int32())]))])
    schema = pa.schema([("page", page), ("n", pa.int64())])
    paths = paths_of(("page.size.w", "page.text", "n", "missing.x"), schema)
    assert with_paths(schema, paths).names == ["page", "n", "page.size.w", "page.text"]
    assert with_paths(schema, ["n"]) is schema


def test_the_longest_own_name_wins() -> None:
    inner = pa.struct([("b", pa.int8()), ("b.c", pa.int16())])
    schema = pa.schema([("a", inner), ("a.b", pa.string()), ("x[0]", pa.bool_())])
    assert find("a.b", schema).dtype == pa.string()
    assert find("a.b.c", schema.remove(1)).dtype == pa.int16()
    assert find("x[0]", schema).fields == ()
    assert [head for head, _ in heads("a.b.c")] == ["a.b.c", "a.b", "a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("z", "no column 'z'; it has photo, pages, n, v"),
        ("z.bytes", "no column 'z.bytes'; it has photo, pages, n, v"),
        ("photo.byts", "no column 'photo.byts': photo has no such field; it has bytes, path"),
        ("pages.text", "pages is list<item: struct<text: string>>, which has no fields"),
        ("n.x", "no column 'n.x': n is int64, which has no fields"),
        ("pages[0].text", "no column 'pages[0].text'; it has photo, pages, n, v"),
    ],
)
def test_a_missing_column_is_named(name: str, message: str) -> None:
    photo = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pages = pa.list_(pa.struct([("text", pa.string())]))
    vector = pa.list_(pa.float32(), 2)
    schema = pa.schema([("photo", photo), ("pages", pages), ("n", pa.int64()), ("v", vector)])
    with pytest.raises(NoColumnError) as caught:
        find(name, schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_names_what_is_no_object() -> None:
    row = {"n": 1, "pages": [{"text": "a"}], "photo": {"x": None}}
    assert value_at(row, "n.x") == (None, "n is no object")
    assert value_at(row, "pages.text") == (None, "pages is no object")
    for name in ("photo.y.z", "photo.x.z", "z.x"):
        assert value_at(row, name) == (None, "")
