"""Which column makes which number is told for every kind of feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.shard_columns import features_of, read_all, source_of

from pipeline.job.source import Source
from pipeline.sources.input_columns import Vector, vectors_of
from pipeline.sources.listing.inputs import list_inputs

FEATURES: tuple[Any, ...] = (
    "age",
    {"column": "plan", "categories": ["basic", "", "1"], "unknown": "own"},
    "vec",
    {"column": "plan", "categories": ["basic", "plus"], "encoding": "index", "null": "unknown"},
    {"column": "seen", "read_as": "weekday"},
    "year",
)
NAMES = (
    *("age", "plan=basic", "plan=''", "plan=1", "plan (other)", "vec[0..2]"),
    *("plan (index)", "seen (weekday)", "year"),
)
ROW = {"age": 3, "plan": "", "vec": [7.0, 8.0, 9.0], "seen": "2026-11-27"}


def source(folder: Path, form: str) -> Source:
    shard = folder / "year=2026"
    shard.mkdir()
    if form == "jsonl":
        (shard / "a.jsonl").write_text(json.dumps(ROW) + "\n")
        return Source(uri=str(folder), format="jsonl", features=features_of(*FEATURES))
    kinds = [pa.int64(), pa.string(), pa.list_(pa.float32(), 3), pa.string()]
    table = pa.table([pa.array([v], k) for v, k in zip(ROW.values(), kinds, strict=True)], [*ROW])
    pq.write_table(table, shard / "a.parquet")
    return source_of(folder, features=features_of(*FEATURES))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_every_number_has_the_name_of_its_column(form: str, tmp_path: Path):
    mine = source(tmp_path, form)
    inputs = list_inputs(mine, max_extent_rows=9)
    [(name, vector)] = vectors_of(mine, inputs.fields).items()
    assert (name, vector.names) == ("", NAMES)
    assert vector.size == len(NAMES) + 2 == inputs.fields.field("features").type.list_size
    if form == "parquet":
        [table] = read_all(inputs, mine, 9)
        assert table.num_rows == 1


def test_several_inputs_have_a_vector_each(tmp_path: Path):
    pq.write_table(pa.table({"a": [1], "b": [2.0], "t": ["x"]}), tmp_path / "a.parquet")
    inputs = {"x": {"features": ("a",)}, "y": {"text_column": "t"}, "z": {"features": ("b", "a")}}
    mine = Source.model_validate_json(
        json.dumps({"uri": str(tmp_path), "format": "parquet", "inputs": inputs})
    )
    vectors = vectors_of(mine, list_inputs(mine, max_extent_rows=9).fields)
    assert vectors == {"x": Vector(1, ("a",)), "z": Vector(2, ("b", "a"))}


def test_texts_beside_the_vector_are_told_by_name(tmp_path: Path):
    pq.write_table(pa.table({"n": [1], "plan": ["a"], "city": ["b"]}), tmp_path / "a.parquet")
    texts = [{"column": name, "read_as": "text"} for name in ("plan", "city")]
    for entries, names in (
        ([{"column": "n", "read_as": "float64"}, *texts], ("n", "plan (text)", "city (text)")),
        (texts[:1], ("plan (text)",)),
    ):
        mine = source_of(tmp_path, features=features_of(*entries))
        fields = list_inputs(mine, max_extent_rows=9).fields
        assert vectors_of(mine, fields) == {"": (len(names), names)}


def test_long_vectors_and_hostile_names_are_made_short():
    long = Vector(1000, tuple(f"column_{n}" for n in range(1000)))
    assert long.describe() == (
        "1,000 features (" + ", ".join(f"column_{n}" for n in range(8)) + ", ...)"
    )
    assert Vector(1, ("a\x1b]0;x\x07\nb" + "c" * 99,)).describe().isprintable()
    assert Vector(1, ("n",)).describe() == "1 feature (n)"
