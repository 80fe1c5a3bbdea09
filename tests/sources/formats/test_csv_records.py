"""Records of CSV are those of Python's `csv`; a bad one costs itself, and memory is bounded."""

from __future__ import annotations

import csv
import io
from itertools import chain
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.selection import examples

from pipeline.sources.formats.csv import CsvOptions
from pipeline.sources.formats.csv_records import Records
from pipeline.sources.lines import blocks

LIMIT = 10**6
DIALECT = CsvOptions().dialect("a.csv")
FIELDS = st.lists(
    st.lists(st.text(st.sampled_from("ab\u00e4,;\"'\n\\ ")), min_size=1, max_size=4), max_size=12
)


def records(data: bytes, options: CsvOptions | None = None, limit: int = LIMIT) -> list[Records]:
    return list((options or CsvOptions()).records(io.BytesIO(data), "a.csv", limit))


def fields(data: bytes, options: CsvOptions | None = None, limit: int = LIMIT) -> list[object]:
    all_fields = chain.from_iterable(batch.fields for batch in records(data, options, limit))
    return [record if isinstance(record, str) else [*record] for record in all_fields]


def strict(text: str) -> list[object]:
    """What `csv` says of a text as a whole; of a record that it refuses, that it does."""
    reader, results = csv.reader(io.StringIO(text, newline="\n"), **DIALECT), list[object]()
    while True:
        try:
            results.append(next(reader))
        except StopIteration:
            return [result for result in results if result != []]
        except csv.Error:
            results.append("refused")


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 12)
    monkeypatch.setattr(blocks, "_CHUNK_BYTES", 5)


@pytest.mark.usefixtures("_small_blocks")
@examples(500)
@given(st.text(st.sampled_from('ab\u00e4,; "\n\r')))
def test_any_text_has_the_records_and_the_errors_of_csv(text: str):
    results = [
        record if isinstance(record, list) else "refused" for record in fields(text.encode())
    ]
    assert results == strict(text)


@pytest.mark.usefixtures("_small_blocks")
def test_a_record_says_in_which_line_it_begins_and_how_large_it_is():
    batches = records(b'a,b\n\n"x\ny\nz",1\r\nlast,2')
    assert batches[0].fields == [["a", "b"]], "a header comes alone"
    numbers = [number for batch in batches for number in batch.numbers.tolist()]
    sizes = [size for batch in batches for size in batch.sizes.tolist()]
    assert (numbers, sizes) == ([1, 3, 6], [4, 11, 6])


@pytest.mark.parametrize(
    ("options", "data", "wanted"),
    [
        (CsvOptions(delimiter=";"), b'a;"b;c"\n', [["a", "b;c"]]),
        (CsvOptions(quote="'"), b"a,'b,\"c'\n", [["a", 'b,"c']]),
        (CsvOptions(quote=None), b'"a","b\n', [['"a"', '"b']]),
        (CsvOptions(escape="\\"), b'a\\,b,"c\\"d"\n', [["a,b", 'c"d']]),
        (CsvOptions(escape="\\"), b'"a""b",\n', [['a"b', ""]]),
    ],
)
def test_the_job_says_how_fields_are_written(
    options: CsvOptions, data: bytes, wanted: list[list[str]]
):
    assert fields(data, options) == wanted


SINGLE_BYTE = [*get_args(CsvOptions.model_fields["encoding"].annotation)]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("encoding", SINGLE_BYTE)
def test_other_encodings_are_read_as_python_decodes_them(encoding: str):
    text = "".join(chr(code) for code in range(161, 0x500))
    text = text.encode(encoding, "ignore").decode(encoding).replace(",", "")
    data = f't,n\n"{text}\n",1\n{text[:9]},2\n'.encode(encoding)
    assert len(text) > 60
    assert fields(data, CsvOptions(encoding=encoding)) == [
        ["t", "n"], [f"{text}\n", "1"], [text[:9], "2"]
    ]  # fmt: skip
    if encoding not in ("utf-8", "latin-1", "iso8859-2", "iso8859-15", "cp1251"):
        assert fields(b"a\x81\nb\n", CsvOptions(encoding=encoding)) == [
            f"is not {encoding.upper()}", ["b"]
        ]  # fmt: skip


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("num_lines", [0, 1, 2, 7, 40])
def test_lines_that_are_skipped_are_no_records_and_are_counted(num_lines: int):
    title, rest = b'a "title\n' * num_lines, b'\nh,i\n1,"2\n3"\n\n4,5\n'
    skipped = records(title + rest, CsvOptions(skip_rows=num_lines))
    plain = records(rest)
    for name in ("fields", "sizes", "numbers"):
        ours, theirs = ([v for r in some for v in getattr(r, name)] for some in (skipped, plain))
        assert ours == ([v + num_lines for v in theirs] if name == "numbers" else theirs), name
    assert records(title, CsvOptions(skip_rows=num_lines + 3)) == []


def test_a_record_that_is_refused_ends_with_its_line():
    records = fields(b'a,b\n"x"y,1\nok,2\nc\rd,3\nok,4\n"open,5\n')
    assert [record for record in records if isinstance(record, list)] == [
        ["a", "b"],
        ["ok", "2"],
        ["ok", "4"],
    ]
    assert records[1] == "is not CSV: ',' expected after '\"'"
    assert records[-1] == "is not CSV: unexpected end of data"


def test_a_line_that_is_not_utf8_costs_itself():
    assert fields(b"a\xff,1\n\xc3\xa4,2\n") == ["is not UTF-8", ["\u00e4", "2"]]


@pytest.mark.usefixtures("_small_blocks")
def test_a_line_that_is_too_long_costs_itself():
    before, long = b"a,b\nx,1\n", b"z" * 300 + b"\n"
    batches = records(before + long + b"y,2\n" * 50, limit=100)
    assert all(sum(map(len, batch.fields[0])) <= 100 for batch in batches)
    sizes = [size for batch in batches for size in batch.sizes.tolist()]
    assert sizes == [4, 4, len(long), *[4] * 50]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(
    "large",
    [
        b'"' + b"z,1\n" * 50 + b'",1\n',
        b'"' + b"z,1\n" * 50,
        b'"' + b"z" * 300 + b'",1\n',
        b'"z\n' + b"z" * 300 + b'",1\n',
    ],
)
def test_behind_a_quoted_record_that_is_too_large_nothing_is_taken_for_rows(large: bytes):
    [*before, last] = records(b"a,b\n" + b"x,1\n" * 80 + large + b"y,2\n" * 50, limit=100)
    fields = [fields for batch in before for fields in batch.fields]
    assert fields == [["a", "b"], *[["x", "1"]] * 80]
    assert (len(last), last.numbers.tolist()) == (1, [82])
    assert last.broken.startswith("from line 82 on: a record of more than 100 bytes, ")


def test_a_shard_reads_the_same_whatever_was_read_before():
    data = b'a,b\n"' + b"z,1\n" * 50_000 + b'",1\ny,2\n'
    first = fields(data, limit=100_000)
    fields(data, limit=10**6)
    assert [len(first), first[2]] == [3, ["y", "2"]]
    assert fields(data, limit=100_000) == first


@pytest.mark.usefixtures("_small_blocks")
def test_some_records_of_a_batch_are_taken():
    [_, batch, *_] = records(b"a\n1\n2\n3\n4\n5\n6\n7\n")
    assert [*batch.take(slice(1, 3)).fields] == [*batch.fields][1:3]
    chosen = batch.take(batch.numbers[[0]] - batch.numbers[0])
    assert (chosen.fields, chosen.numbers.tolist()) == ([batch.fields[0]], [batch.numbers[0]])
