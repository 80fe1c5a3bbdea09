"""Test that lines become what Python's own parser makes of them, each of them for itself."""

from __future__ import annotations

import io
import random
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.arrays import as_array
from pipeline.sources.columns.input_reader import Failures
from pipeline.sources.columns.pass_through import cast_column
from pipeline.sources.formats import jsonl
from pipeline.sources.formats.jsonl import from_values, parse_block
from pipeline.sources.lines.blocks import Block, read_blocks
from pipeline.sources.lines.line_columns import Column

LIMIT = 10_000
COLUMNS = [
    Column("t", "text"),
    Column("id", "id"),
    Column("x", "number"),
    Column("v", "number", width=2),
    Column("n", "pass", pa.int64()),
    Column("k", "pass", pa.int8()),
    Column("f", "pass", pa.float32()),
    Column("b", "pass", pa.bool_()),
    Column("s", "pass", pa.string()),
    Column("d", "pass", pa.timestamp("us"), is_declared=True),
    Column("u", "pass", pa.uint64(), is_declared=True),
    Column("m", "pass", pa.decimal128(20, 4), is_declared=True),
]
BY_NAME = {column.name: column for column in COLUMNS}
VALUES: dict[str, list[str]] = {
    "t": ['"a"', '"\\u00e4 \\ud83d\\ude00"', '""', "null", '"\u20ac"'],
    "id": ['"a"', '"7"', "null"],
    "x": ["1", "1.5", "0.1e3", "1e300", "null", "12345678901234567890"],
    "v": ["[1, 2]", "[1.5, 0]", "null", "[null, 3]"],
    "n": ["1", "-9223372036854775808", "null"],
    "k": ["1", "-128", "null"],
    "f": ["1.5", "16777217", "1e300", "null", "0.1"],
    "b": ["true", "false", "null"],
    "s": ['"a"', '"NaN"', "null", '"[{"'],
    "d": ['"2026-11-24T10:00:00"', '"2026-11-24"', "null"],
    "u": ["5", "null"],
    "m": ['"5.25"', "null"],
}
"""Column -> values that fit it, for the most part."""
ODD = [
    *(
        "-0",
        "[-0, 1]",
        "NaN",
        "[]",
        "{}",
        "1",
        "1.5",
        '"x"',
        "true",
        "1e999",
        "1.7976931348623159e308",
        "-1.7976931348623159e308",
        "[1.7976931348623159e308, 1]",
        "1e-400",
        "[1]",
        "[1, true]",
        '["x", 1]',
    ),
    *(
        "18446744073709551615",
        "10000000000000000000000000000000000000000000000000",
        "-1",
        '"\\udc00"',
    ),
    *('"2026-11-24"', '"true"', '"12"', '"' + "z" * LIMIT + '"', "[[1, 2]]", '{"a": [1]}', "tru"),
]
SPOILS = [b"{", b"}", b"\xff", b"\x00", b'"', b"\\", b" ", b"\t", b"\r", b",", b"[", b"]", b":"]


def some_line(dice: random.Random, oddness: float) -> bytes:
    names = dice.sample(list(VALUES), k=dice.randrange(len(VALUES) + 1))
    pairs = []
    for name in names:
        pool = ODD if dice.random() < oddness else VALUES[name]
        pairs.append(f'"{name}": {dice.choice(pool)}')
    if dice.random() < 0.2:
        pairs.append('"more": {"t": [1, {"x": null}]}')
    if dice.random() < oddness:
        pairs += dice.choices(pairs or ['"t": "b"'])
    line = bytearray(("{" + ", ".join(pairs) + "}").encode())
    if dice.random() < oddness:
        at = dice.randrange(len(line) + 1)
        line[at : at + dice.randrange(3)] = dice.choice(SPOILS)
    return bytes(line) + dice.choice([b"\n", b"\n", b"\r\n", b" \n", b"\n\n"])


def blocks_of(data: bytes) -> list[Block]:
    return list(read_blocks(io.BytesIO(data), LIMIT, "JSON lines"))


def as_python(line: bytes) -> Any:
    return jsonl._parse_slowly(line, jsonl._DECODER)


def parsed(block: Block) -> tuple[list[list[Any]], Failures]:
    table, failures = parse_block(block, BY_NAME, LIMIT)
    columns = []
    for column in COLUMNS:
        values = as_array(table.column(column.name))
        if column.dtype is not None:
            values, problems = cast_column(values, pa.field(column.name, column.dtype))
            for row, message in problems.items():
                failures[row] = failures[row] or message  # type: ignore[call-overload]
        columns.append([repr(value) for value in values.cast(_raw(values.type)).to_pylist()])
    return columns, failures


def _raw(dtype: pa.DataType) -> pa.DataType:
    is_text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
    return pa.large_binary() if is_text else dtype


@pytest.mark.parametrize(
    "oddness", [0.02, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.3))]
)
def test_lines_become_what_python_makes_of_them(oddness: float, monkeypatch: pytest.MonkeyPatch):
    dice = random.Random(f"jsonl {oddness}")
    for _ in range(60 if oddness == 0.02 else 150):
        data = b"".join(some_line(dice, oddness) for _ in range(dice.randrange(1, 12)))
        for block in blocks_of(data):
            if block.broken:
                continue
            one, why = parsed(block)
            with monkeypatch.context() as patch:
                patch.setattr(jsonl, "_numbers", lambda values, dtype: None)
                patch.setattr(
                    jsonl, "parse_line", lambda line: jsonl._parse_slowly(line, jsonl._DECODER)
                )
                other, whether = parsed(block)
            assert one == other, data
            assert [bool(failure) for failure in why] == [bool(failure) for failure in whether], (
                data
            )
            for row in range(len(block)):
                alone, reasons = parsed(block.take(slice(row, row + 1)))
                assert [column[row] for column in one] == [column[0] for column in alone], data
                assert bool(why[row]) == bool(reasons[0])


@pytest.mark.parametrize("number", ["1.7976931348623159e308", "-1e400"])
@pytest.mark.parametrize("neighbour", [b'{"x": 1}', b'{"x": 1, "x": -0}'], ids=["plain", "odd"])
def test_a_number_that_rounds_to_infinity_costs_its_row(number: str, neighbour: bytes):
    lines = b'{"x": %s}\n{"v": [%s, 1]}\n' % ((number.encode(),) * 2)
    [block] = blocks_of(neighbour + b"\n" + lines)
    table, failures = parse_block(block, BY_NAME, LIMIT)
    assert [failure and failure.reason for failure in failures] == [
        None,
        "bad_schema",
        "bad_schema",
    ]
    assert table.column("x").to_pylist() == [-0.0 if b"-0" in neighbour else 1.0, None, None]


JOINED = [
    b'{"t": "a"}{"t": "b"}\n{"t":\n"c"}\n',
    b'{"t": "a"} {"t": "b", "more": {}\n}\n',
    b'{"t": "a", "more": {}\n{"t": "b"}}\n',
    b'{"t": "a\n{"t": "b"}\n"}\n',
    b'{"more": [{}\n{}]}\n',
    b'{"more": {"a": {}\n{}}\n{"t": "b"}}\n',
]


@pytest.mark.parametrize("data", JOINED)
def test_no_object_goes_on_in_the_next_line(data: bytes):
    [block] = blocks_of(data)
    _, failures = parse_block(block, BY_NAME, LIMIT)
    assert any(failures)


def test_chosen_lines_are_not_joined_by_what_is_between_them():
    data = b'{"t": "a"}\n{"more":\n{"t": "b"}\n}\n{"t": "c"}\n'
    [block] = blocks_of(data)
    chosen = block.take(np.array([0, 2, 4]))
    table, failures = parse_block(chosen, BY_NAME, LIMIT)
    assert table.column("t").to_pylist() == ["a", "b", "c"]
    assert failures == [None] * 3


@given(line=st.text(alphabet='{}[]":, -01e.9tfnu\\\u00e9\ud800', max_size=30))
@example('{"a": -0}')
@example('{"a": 1e999, "b": "\\ud800"}')
@example('{"a": ' + "9" * 400 + "}")
@example("[" * 201 + "]" * 201)
def test_a_line_is_parsed_or_refused_as_python_does(line: str):
    data = line.encode("utf-8", "surrogatepass")
    try:
        expected = repr(as_python(data))
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            jsonl.parse_line(data)
    else:
        value = jsonl.parse_line(data)
        assert repr(value) == expected or len(line) > 300  # of which Python makes a float


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (Column("c", "pass", pa.string()), ["a", 1, 1.5, True, [1, "x"], {"a": None}, None],
         ["a", "1", "1.5", "true", '[1,"x"]', '{"a":null}', None]),
        (Column("c", "pass", pa.int64()), [1, 1.0, 1.5, "2", "x", True, [], 2**70],
         [1, 1, None, None, None, None, None, None]),
        (Column("c", "pass", pa.int64(), is_declared=True), ["2", "-3", "0x1F", "1e2", "x", True],
         [2, -3, None, None, None, None]),
        (Column("c", "pass", pa.float64()), [1, 1.5, "2.5", True, 2**70, 2**53 + 1, float("inf")],
         [1.0, 1.5, None, None, 2.0**70, None, None]),
        (Column("c", "pass", pa.float32(), is_declared=True), ["1.10", "16777217", "1e39", "inf"],
         [pytest.approx(1.1), None, None, float("inf")]),
        (Column("c", "pass", pa.bool_()), [True, "false", 1, "x"], [True, None, None, None]),
        (Column("c", "pass", pa.bool_(), is_declared=True), ["false", 1], [False, None]),
        (Column("c", "pass", pa.uint64()), [2**64 - 1, -1], [2**64 - 1, None]),
        (Column("c", "pass", pa.date32(), is_declared=True), ["2026-11-24", "x"], None),
        (Column("c", "pass", pa.timestamp("us"), is_declared=True), ["2026-11-24", 1700000000],
         None),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_null_and_a_problem(
    column: Column, values: list[Any], expected: list[Any] | None
):
    array, problems = from_values(column, values)
    assert column.dtype is not None
    cast, more = cast_column(array, pa.field("c", column.dtype))
    problems = {**problems, **more}
    if expected is None:
        assert [value is None for value in cast.to_pylist()] == [False, True]
        return
    assert cast.to_pylist() == expected
    assert sorted(problems) == [
        row for row, value in enumerate(expected) if value is None and values[row] is not None
    ]
