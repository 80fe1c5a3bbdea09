"""Files of categories: read as they were written, in their order, with what a list has."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import features_of, read_all, source_of

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_job
from pipeline.job.source import Source
from pipeline.sources.features.encodings import with_categories
from pipeline.sources.listing.inputs import list_inputs


def source(folder: Path, categories: Any, **more: Any) -> Source:
    entry = {"column": "plan", "categories": categories, **more}
    return source_of(folder / "in", features=features_of("n", entry))


def categories_in(folder: Path, text: str | bytes) -> Any:
    file = folder / "plans.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    [_, entry] = with_categories(source(folder, str(file))).features
    return entry.categories


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("basic\npro\n", ["basic", "pro"]),
        ("basic\r\npro", ["basic", "pro"]),
        (b"\xef\xbb\xbfbasic\npro\n", ["basic", "pro"]),
        ('\n["basic",\n"pro"]', ["basic", "pro"]),
        ("\nbasic\n\x0b\n", ["", "basic", "\x0b"]),
        ("b\n\na", ["b", "", "a"]),
        ('["b", "", "a", " a", "\\u2028"]', ["b", "", "a", " a", "\u2028"]),
        ("a\u2028b\n c \n", ["a\u2028b", " c "]),
        ("[3, true, -1]", ["3", "true", "-1"]),
    ],
)
def test_a_file_is_lines_or_json_and_nothing_is_left_out(
    text: str | bytes, expected: list[str], tmp_path: Path
):
    assert categories_in(tmp_path, text) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\na\n", "= .*txt: 'a' is there twice"),
        ('["1", 1]', "= .*txt: '1' is there twice"),
        ("a\n\n\n", "= .*txt: '' is there twice"),
        ("[1, 2.5]", "2.5 is neither text nor a whole number"),
        ('["a", null]', "null is neither text nor a whole number"),
        ('["a", ["b"]]', r"\[\"b\"\] is neither text nor a whole number"),
        ("[1, 2", "no list of values"),
        (b"\xff", "no list of values"),
        ("", "holds no values"),
        ("[]", "holds no values"),
    ],
)
def test_a_bad_file_is_one_line(text: str | bytes, words: str, tmp_path: Path):
    with pytest.raises(JobError, match=f"source.features: plan: categories .*{words}") as caught:
        categories_in(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(JobError, match=r"plan: categories = .*/gone.json: no such file"):
        with_categories(source(tmp_path, str(tmp_path / "gone.json")))


def test_a_job_without_such_files_stays_what_it_is(tmp_path: Path):
    mine = source(tmp_path, ["a", ""])
    assert with_categories(mine) is mine


@pytest.mark.parametrize("way", ["list", "json", "lines"])
def test_empty_strings_are_categories_and_nulls_are_not(way: str, tmp_path: Path):
    values = ["", "a", "b"]
    (tmp_path / "in").mkdir()
    table = pa.table({"n": [0.5] * 4, "plan": ["b", "", None, "a"]})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    file = tmp_path / "plans"
    file.write_text(json.dumps(values) if way == "json" else "\na\nb\n")
    mine = source(tmp_path, values if way == "list" else str(file), encoding="index")
    full = with_categories(mine)
    rows = pa.concat_tables(read_all(list_inputs(full, max_extent_rows=9), full, 9))
    outcomes = zip(rows["features"].to_pylist(), rows["error"].to_pylist(), strict=True)
    assert [error or vector[1] for vector, error in outcomes] == [2, 0, "null_input", 1]


def test_the_features_of_one_of_several_inputs_have_files_too(tmp_path: Path):
    (tmp_path / "c").write_text("a\n\n")
    entry = {"column": "p", "categories": str(tmp_path / "c")}
    document = {
        "source": {
            "uri": "/in",
            "format": "parquet",
            "inputs": {"x": {"features": ["n", entry]}, "y": {"text_column": "t"}},
        },
        "model": {"factory": "a:b", "task": "regress"},
        "sink": {"uri": "/out"},
    }
    before = parse_job(document, date=dt.date(2026, 1, 1), origin="job").source
    after = with_categories(before)
    assert after.parts["x"].features[1].categories == ("a", "")
    assert after.parts["y"] == before.parts["y"]
