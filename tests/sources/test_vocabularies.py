"""Vocabularies: made of the column once, kept, read again, and part of the fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_columns import features_of, read_all, source_of

from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.inputs import Inputs, list_inputs
from pipeline.sources.vocabularies import (
    categories_of,
    keep_vocabularies,
    vocabularies_digest,
)

PLAN = {"column": "plan", "unknown": "own"}


def write(folder: Path, name: str, *plans: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"plan": pa.array(plans)}), folder / name)


def listed(folder: Path, *entries: dict[str, Any]) -> tuple[Source, Inputs]:
    source = source_of(folder / "in", features=features_of(*entries))
    return source, list_inputs(source, max_extent_rows=9)


def found(folder: Path, **more: Any) -> Any:
    source, inputs = listed(folder, {**PLAN, **more})
    return categories_of(source.features, inputs.fields)[0]


def keep(source: Source, inputs: Inputs) -> None:
    keep_vocabularies(source.features, source.storage_options, inputs.fields)


def test_values_of_all_shards_are_sorted_and_listing_writes_nothing(tmp_path: Path):
    write(tmp_path / "in", "a.parquet", "pro", None, "basic")
    write(tmp_path / "in", "b.parquet", "\u00e4", "pro", "Zed")
    (tmp_path / "in" / "broken.parquet").write_bytes(b"PAR1")
    assert found(tmp_path, vocabulary=str(tmp_path / "v.json")) == ("Zed", "basic", "pro", "\u00e4")
    assert not (tmp_path / "v.json").exists()


def test_whole_numbers_are_sorted_by_size(tmp_path: Path):
    write(tmp_path / "in", "a.parquet", 10, 9, -3, 10)
    assert found(tmp_path, vocabulary=str(tmp_path / "v.json")) == ("-3", "9", "10")


def test_what_was_made_is_kept_and_later_inputs_are_read_by_it(tmp_path: Path):
    write(tmp_path / "in", "a.parquet", "pro", "basic")
    entry = {**PLAN, "vocabulary": str(tmp_path / "kept" / "v.json")}
    source, inputs = listed(tmp_path, entry)
    keep(source, inputs)
    keep(source, inputs)
    assert json.loads((tmp_path / "kept" / "v.json").read_text()) == ["basic", "pro"]
    write(tmp_path / "in", "b.parquet", "gold")
    source, again = listed(tmp_path, entry)
    assert vocabularies_digest(again.fields) == vocabularies_digest(inputs.fields) != ""
    table = pa.concat_tables(read_all(again, source, 9))
    assert table["features"].to_pylist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_another_runs_vocabulary_is_not_replaced(tmp_path: Path):
    write(tmp_path / "in", "a.parquet", "pro", "basic")
    source, inputs = listed(tmp_path, {**PLAN, "vocabulary": str(tmp_path / "v.json")})
    (tmp_path / "v.json").write_text('["other"]')
    with pytest.raises(JobError, match=r"v\.json was written meanwhile.*; run again"):
        keep(source, inputs)
    assert (tmp_path / "v.json").read_text() == '["other"]'


@pytest.mark.parametrize(
    "text",
    ["basic\npro\n\n", '["basic", "pro"]', '\n["basic",\n"pro"]'],
    ids=["lines", "JSON", "lf"],
)
def test_a_file_of_categories_is_lines_or_json(text: str, tmp_path: Path):
    write(tmp_path / "in", "a.parquet", "pro")
    (tmp_path / "c.txt").write_text(text)
    assert found(tmp_path, categories=str(tmp_path / "c.txt")) == ("basic", "pro")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\na\n", "plan: .*'a' is there twice"),
        ("[1, 2.5]", "plan: .*2.5 is neither text nor a whole number"),
        ("[1, 2", "plan: .*no list of values"),
        ("", "plan: .*holds no values"),
        (None, "plan: categories = .*: no such file"),
    ],
)
def test_a_bad_file_is_one_line(text: str | None, words: str, tmp_path: Path):
    write(tmp_path / "in", "a.parquet", "pro")
    if text is not None:
        (tmp_path / "c.txt").write_text(text)
    with pytest.raises(JobError, match=f"source.features: {words}"):
        found(tmp_path, categories=str(tmp_path / "c.txt"))


def test_too_many_values_and_none_at_all_are_refused(tmp_path: Path):
    write(tmp_path / "in", "a.parquet", "a", "b", "c")
    where = {"vocabulary": str(tmp_path / "v.json")}
    with pytest.raises(JobError, match="plan has more than 2 different values; raise max_cat"):
        found(tmp_path, **where, max_categories=2)
    write(tmp_path / "in", "a.parquet", None, None)
    with pytest.raises(JobError, match="plan has no value in this input"):
        found(tmp_path, **where)


def test_two_columns_with_one_vocabulary_are_refused(tmp_path: Path):
    folder = tmp_path / "in" / "year=2026"
    write(folder, "a.parquet", "a")
    where = {"vocabulary": str(tmp_path / "v.json")}
    with pytest.raises(JobError, match="plan and year have one vocabulary"):
        listed(tmp_path, {**PLAN, **where}, {"column": "year", **where})


def test_names_alone_have_no_digest(tmp_path: Path):
    write(tmp_path / "in", "a.parquet", 1, 2)
    source = source_of(tmp_path / "in", features=("plan",))
    assert vocabularies_digest(list_inputs(source, max_extent_rows=9).fields) == ""
