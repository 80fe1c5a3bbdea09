"""JSON lines: what a line becomes, why one fails alone, and slices that are the same each time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.inputs.jsonl_shards import CODECS, lines, read, read_all, source_of
from support.runs.selection import quick_cases

from pipeline.core.errors import InfraError, JobError
from pipeline.core.schema import ERROR, FEATURES, MESSAGE, NUM_BYTES, ROW_ID, TEXT
from pipeline.job.source import Source
from pipeline.sources.columns.input_reader import Failures
from pipeline.sources.formats import jsonl
from pipeline.sources.formats.jsonl import MAX_DEPTH, MAX_VALUES
from pipeline.sources.lines import blocks as jsonl_lines
from pipeline.sources.lines.blocks import Block
from pipeline.sources.lines.line_format import max_line_bytes
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.units import RowFilter

WORDS = {"text_column": "t"}


def write(folder: Path, *values: Any, name: str = "a.jsonl") -> Source:
    (folder / name).write_bytes(CODECS[name[name.index(".") :]](lines(*values)))
    return source_of(folder, **WORDS)


def column(rows: pa.Table, name: str) -> list[Any]:
    values: list[Any] = rows.column(name).to_pylist()
    return values


BAD = [
    (b"", None),
    (b'{"t": "a"', ("decode_error", "line 2 is not JSON: Expecting ',' delimiter")),
    (b"nonsense", ("decode_error", "line 2 is not JSON: Expecting value at character 0")),
    (b'["a"]', ("decode_error", "line 2 is a list, expected an object")),
    (b'"a"', ("decode_error", "line 2 is text, expected an object")),
    (b"null", ("decode_error", "line 2 is null, expected an object")),
    (b"{}", ("null_input", "t is null")),
    (b'{"t": null}', ("null_input", "t is null")),
    (b'{"t": 5}', ("bad_schema", "t is a number, expected text")),
    (b'{"t": {"a": 1}}', ("bad_schema", "t is an object, expected text")),
    (b'{"t": "a", "x": NaN}', ("decode_error", "line 2 is not JSON: NaN is no value")),
    (b'{"t": "a", "x": [-Infinity]}', ("decode_error", "-Infinity is no value")),
    (b'{"t": "\\ud800"}', ("decode_error", "t is not UTF-8, at byte 0")),
    (b'{"t": "a\\udc00"}', ("decode_error", "t is not UTF-8, at byte 1")),
    (b'{"t": "a\xff"}', ("decode_error", "line 2 is not UTF-8, at byte 8")),
    (b'{"t": "a", "x": "\xff"}', ("decode_error", "line 2 is not UTF-8, at byte 17")),
    (b'{"t": "a"} {"t": "b"}', ("decode_error", "line 2 is not JSON: Extra data")),
    (b'{"t": "a"},', ("decode_error", "line 2 is not JSON: Extra data")),
    (b'{"t": "a\x00"}', ("decode_error", "line 2 is not JSON: Invalid control character")),
    (b'{"t": "a"}\x00', ("decode_error", "line 2 is not JSON: Extra data")),
    (b"{'t': 'a'}", ("decode_error", "line 2 is not JSON")),
    (b'\xef\xbb\xbf{"t": "a"}', ("decode_error", "line 2 is not JSON")),
    (b'{"t": "' + b"x" * 101 + b'"}', ("too_large", "t has 101 bytes, the limit is 100")),
    (b'{"t": "a", "x": ' + b"[" * 10**5 + b"}", ("decode_error", "line 2 is nested more than")),
    (
        b'{"t": "a", "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        ("decode_error", "line 2 is nested more than 200 deep"),
    ),
]
GOOD = [
    b'{"t": "a", "x": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}",
    b'{"t": "b", "t": "a"}',
    b'{"x": 1, "x": 2, "t": "a"}',
    b'{"t": "a", "x": "NaN, [-Inf: Infinity"}',
    b'{"t": "a", "x": 1e999}',
    b'{"t": "a", "x": ' + b"9" * 5000 + b"}",
    b'{"t": "a", "x": "\\ud800"}',
    b'{"\\u0074": "a"}',
    b'  \t{ "t" : "a" }  \t',
    b'{"t": "a", "x": {"t": "b"}}',
    b'{"x": [' + b"{}," * 500 + b'{}], "t": "a"}',
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_bad_line_costs_its_row_alone(end: bytes, tmp_path: Path):
    data = b"".join(b'{"t": "before"}' + end + line + end for line, _ in BAD)
    (tmp_path / "a.jsonl").write_bytes(data + b'{"t": "last"}' + end)
    rows = read_all(source_of(tmp_path, **WORDS, max_text_bytes=100))
    outcomes = [*zip(*(column(rows, name) for name in (TEXT, ERROR, MESSAGE)), strict=True)]
    assert outcomes.pop() == ("last", None, None)
    for number, (line, expected) in enumerate(BAD, 1):
        assert outcomes.pop(0) == ("before", None, None), line
        if expected is not None:  # a blank line is no row
            text, error, message = outcomes.pop(0)
            assert (text, error) == (None, expected[0]), line
            assert expected[1].replace("line 2 ", f"line {2 * number} ") in message
    assert not outcomes


def test_what_is_odd_and_right_is_read(tmp_path: Path):
    source = write(tmp_path, {"t": "a"}, *(line + b"\n" for line in GOOD), {"t": "a"})
    rows = read_all(source)
    assert column(rows, MESSAGE) == [None] * (len(GOOD) + 2)
    assert column(rows, TEXT) == ["a"] * (len(GOOD) + 2)


def test_a_bom_blank_lines_and_a_missing_line_end_are_no_rows(tmp_path: Path):
    data = b'\xef\xbb\xbf\n  \r\n{"t": "a"}\r\n\n\t\n{"t": "b"}\n\n{"t": 1}'
    (tmp_path / "a.jsonl").write_bytes(data)
    rows = read_all(source_of(tmp_path, **WORDS))
    assert column(rows, TEXT) == ["a", "b", None]
    assert column(rows, ROW_ID) == ["a.jsonl#0", "a.jsonl#1", "a.jsonl#2"]


def test_an_empty_shard_has_no_rows(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"\n \n")
    [(key, rows)] = read(source_of(tmp_path, **WORDS))
    assert (key.num_rows, rows.num_rows, key.is_last) == (0, 0, True)


@pytest.mark.parametrize("data", ["{}".encode("utf-16"), "{}".encode("utf-32-be"), bytes(5000)])
def test_a_shard_of_another_kind_is_one_row(data: bytes, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(data)
    rows = read_all(source_of(tmp_path, **WORDS))
    assert column(rows, ERROR) == ["unreadable_shard"]
    assert column(rows, ROW_ID) == ["a.jsonl"]


@pytest.mark.parametrize("suffix", CODECS)
def test_a_line_that_is_too_long_is_not_held(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.sources.lines.line_format._ROOM_BYTES", 100)
    source = source_of(tmp_path, **WORDS, max_text_bytes=50)
    limit = max_line_bytes(source, 6)
    assert limit == 400
    long = b'{"t": "' + b"x" * 5_000_000 + b'"}\n'
    just = b'{"t": "' + b"x" * (limit - 9) + b'"}\n'  # 400 bytes with its line end and one more
    data = lines({"t": "a"}, long, {"t": "b"}, just, {"t": "c"}, long)
    (tmp_path / f"a{suffix}").write_bytes(CODECS[suffix](data))
    rows = read_all(source)
    assert column(rows, TEXT) == ["a", None, "b", None, "c", None]
    assert column(rows, ERROR) == [None, "too_large", None, "too_large", None, "too_large"]
    assert column(rows, NUM_BYTES)[1::2] == [len(long), limit + 1, len(long)]
    assert column(rows, MESSAGE)[1] == f"line 2 has {len(long)} bytes, the limit is 400"


def test_a_text_of_the_largest_size_fits_however_it_is_escaped(tmp_path: Path):
    text = "\\u0041" * 1000
    source = source_of(tmp_path, **WORDS, max_text_bytes=1000)
    (tmp_path / "a.jsonl").write_text(f'{{"t": "{text}"}}')
    assert column(read_all(source), TEXT) == ["A" * 1000]


def test_a_line_of_too_many_values_is_refused(tmp_path: Path):
    source = write(tmp_path, b'{"t": "a", "x": [' + b"1," * MAX_VALUES + b"1]}\n", {"t": "b"})
    rows = read_all(source)
    assert column(rows, ERROR) == ["decode_error", None]


def some_lines(seed: int, number: int) -> bytes:
    """Return lines of all kinds, also long ones, so that blocks end anywhere."""
    dice = random.Random(seed)
    kinds: list[bytes] = [line for line, _ in BAD] + GOOD
    lines = []
    for index in range(number):
        if dice.random() < 0.1:
            lines.append(dice.choice([line for line in kinds if len(line) < 1000]))
        else:
            text = "x" * dice.choice([0, 5, 50, 3000])
            lines.append(json.dumps({"t": text, "id": f"i{index}", "n": index}).encode())
    return b"\n".join(lines)


@pytest.mark.parametrize(
    "suffix", quick_cases(((suffix,) for suffix in CODECS), lambda suffix: suffix == ".jsonl")
)
def test_slices_are_the_same_whichever_are_done(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jsonl_lines, "_BLOCK_BYTES", 5000)
    monkeypatch.setattr(jsonl_lines, "_CHUNK_BYTES", 1500)
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}{suffix}").write_bytes(CODECS[suffix](some_lines(seed, 60)))
    source = source_of(tmp_path, **WORDS, id_column="id", pass_through=("n",))
    every = read(source, 7, slice_bytes=9000)
    assert len(every) > 16
    assert pa.concat_tables([rows for _, rows in every]).equals(read_all(source))
    for kept in range(0, len(every), 3):
        done = [key for key, _ in every[:kept] + every[kept + 1 :]]
        [(key, rows)] = read(source, 7, slice_bytes=9000, done=done)
        assert key == every[kept][0]
        assert rows.equals(every[kept][1])
        rest = read(source, 7, slice_bytes=9000, done=[key for key, _ in every[:kept]])
        assert [key for key, _ in rest] == [key for key, _ in every[kept:]]


def test_what_is_passed_over_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path, *({"t": str(row)} for row in range(10)))
    every = read(source, 5)
    parsed: list[int] = []
    parse = jsonl.parse_block

    def counted(block: Block, **kwargs: Any) -> tuple[pa.Table, Failures]:
        parsed.append(len(block))
        return parse(block, **kwargs)

    monkeypatch.setattr(jsonl, "parse_block", counted)
    read(source, 5, done=[every[0][0]])
    assert parsed == [5]


def test_some_rows_are_read_alone(tmp_path: Path):
    source = write(tmp_path, *({"t": str(row)} for row in range(20)))
    for only in ((0,), (3, 4, 11), (19,), tuple(range(20))):
        rows = read_all(source, rows=RowFilter(only))
        assert column(rows, TEXT) == [str(row) for row in only]
        assert column(rows, ROW_ID) == [f"a.jsonl#{row}" for row in only]


def test_no_more_rows_than_the_limit(tmp_path: Path):
    write(tmp_path, *({"t": str(row)} for row in range(4)))
    source = write(tmp_path, *({"t": str(row)} for row in range(4)), name="b.jsonl")
    slices = read(source, 3, max_rows=5)
    assert [(key.start, key.end, key.is_last) for key, _ in slices] == [(0, 3, False), (3, 5, True)]


def test_slices_that_are_done_and_gone_are_a_changed_input(tmp_path: Path):
    source = write(tmp_path, *({"t": str(row)} for row in range(10)))
    done = [key for key, _ in read(source, 4)[:2]]
    write(tmp_path, {"t": "0"})
    with pytest.raises(InfraError, match="changed since it was planned"):
        read(source, 4, done=done)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *((suffix, damage) for suffix in (".jsonl.gz", ".jsonl.zst") for damage in ("cut", "more")),
        (".jsonl.gz", "checksum"),
        (".jsonl.gz", "overwritten"),  # what Arrow writes as zstd has no checksum
    ],
)
def test_damage_costs_the_rest_of_the_shard(suffix: str, damage: str, tmp_path: Path):
    dice = random.Random(3)
    texts = [dice.randbytes(100).hex() for _ in range(2000)]
    data = bytearray(CODECS[suffix](lines(*({"t": text} for text in texts))))
    if damage == "cut":
        del data[len(data) * 3 // 4 :]
    elif damage == "overwritten":
        data[len(data) // 2 : len(data) // 2 + 100] = b"\xff" * 100
    elif damage == "checksum":
        data[-5] ^= 1
    else:
        data += b"more"
    (tmp_path / f"a{suffix}").write_bytes(data)
    (tmp_path / f"b{suffix}").write_bytes(CODECS[suffix](lines({"t": "after"})))
    source = source_of(tmp_path, **WORDS)
    every = read(source, 50)
    rows = pa.concat_tables([rows for _, rows in every])
    [rest] = [row for row, e in enumerate(column(rows, ERROR)) if e == "unreadable_shard"]
    assert column(rows, ROW_ID)[rest] == f"a{suffix}"
    assert "damaged" in column(rows, MESSAGE)[rest]
    assert column(rows, TEXT)[-1] == "after"
    assert rest == rows.num_rows - 2
    assert rest > (500 if damage in ("cut", "overwritten") else 1500)
    if damage != "overwritten":  # some of what is wrong decompresses, too
        assert column(rows, TEXT)[:rest] == texts[:rest]
    again = read(source, 50, done=[key for key, _ in every[:5]])
    assert all(one.equals(other) for (_, one), (_, other) in zip(again, every[5:], strict=True))


def test_ids_of_numbers_and_texts(tmp_path: Path):
    values = ["x", 7, -0, None, True, 1.5, 10**30, "\ud800"]
    source = write(tmp_path, *({"t": "a", "id": value} for value in values), {"t": "a"})
    rows = read_all(source.model_copy(update={"id_column": "id"}))
    row_ids = [f"a.jsonl#{row}" for row in range(9)]
    assert column(rows, ROW_ID) == ["x", "7", "0", *row_ids[3:6], str(10**30), *row_ids[7:]]
    assert column(rows, ERROR) == [
        None, None, None, "null_input", "bad_schema", "bad_schema", None, "unidentified",
        "null_input",
    ]  # fmt: skip


def test_features_are_numbers_and_lists_of_one_length(tmp_path: Path):
    good = [{"a": 1, "v": [2, 3.5]}, {"a": True, "v": [-0.0, 1e10]}]
    bad = [
        {"a": None, "v": [1, 2]}, {"v": [1, None]}, {"a": "1", "v": [1, 2]}, {"a": 1, "v": [1]},
        {"a": 1, "v": 5}, {"a": 1, "v": [1, "x"]}, {"a": 1e300, "v": [1, 2]}, {"a": 10**50, "v": 1},
    ]  # fmt: skip
    write(tmp_path, *good, *bad)
    source = source_of(tmp_path, features=("v", "a"), lossy_features=True)
    rows = read_all(source)
    assert column(rows, FEATURES)[:2] == [[2.0, 3.5, 1.0], [0.0, 1e10, 1.0]]
    assert column(rows, ERROR) == [
        None, None, "null_input", "null_input", "bad_schema", "bad_schema", "bad_schema",
        "bad_schema", "non_finite", "bad_schema",
    ]  # fmt: skip
    assert column(rows, MESSAGE)[5] == "v has 1 numbers, expected 2"


def test_whole_numbers_beyond_float32_end_the_run(tmp_path: Path):
    source = source_of(tmp_path, features=("a",))
    write(tmp_path, {"a": 0.5}, {"a": 2**24 + 1})
    with pytest.raises(JobError, match=r"a holds 16777217 in a\.jsonl, which float32 rounds"):
        read_all(source)
    write(tmp_path, {"a": 0.1}, {"a": 2**24})
    assert read_all(source).column(ERROR).null_count == 2


def test_all_shards_are_listed_by_their_suffixes(tmp_path: Path):
    names = ["a.jsonl", "b.ndjson", "c.jsonl.gz", "d.ndjson.gz", "e.jsonl.zst", "f.ndjson.ZST"]
    for name in [*names, "g.json", "h.jsonl.bz2"]:
        (tmp_path / name).write_bytes(b"")
    inputs = list_inputs(source_of(tmp_path, **WORDS), max_extent_rows=4)
    assert [shard.path for shard in inputs.shards] == names
    assert inputs.skipped.total == 2
