"""Promise: parts have about their target size, and rows stay in input order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.checkout import PYTHONPATH
from support.runs.published import run_here

from pipeline.commit.parts.compaction import Compacted, Compactor, SizedSlice, compact_slices
from pipeline.commit.staging import StagingWriter
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.schema import CLASSIFY_FIELDS, prediction_schema, staged_schema
from pipeline.core.slices import SliceKey
from pipeline.storage.store import Store

SCHEMA = prediction_schema([], CLASSIFY_FIELDS)
TARGET_BYTES = 192 * 1024.0
VERSION = "000001-0123456789ab"
CLASSES = pa.array([f"class number {number}" for number in range(200)])


def make_rows(index: int, num_rows: int, *, tail: str, bad: set[int]) -> pa.Table:
    """Rows of one slice: ids that differ, labels that repeat; `tail` makes the ids longer."""
    rng, schema = np.random.default_rng(index), staged_schema([], CLASSIFY_FIELDS)
    numbers = rng.integers(0, 1000, num_rows).tolist()
    ids = [f"{number:04d}/{index:06d}-{row:06d}{tail}.jpg" for row, number in enumerate(numbers)]
    classes, scores = rng.integers(0, 200, 3 * num_rows), rng.random(3 * num_rows)
    entry = schema.field("top_k").type.value_type
    entries = pa.StructArray.from_arrays(
        [CLASSES.take(pa.array(classes)), pa.array(classes, entry.field("label_id").type),
         pa.array(scores, entry.field("score").type)],
        fields=[*entry],
    )  # fmt: skip
    failures = [
        Failure(Reason.TRUNCATED, "decode", "ends early") if row in bad else None
        for row in range(num_rows)
    ]
    firsts = CLASSES.take(pa.array(classes[::3])).to_pylist()
    return pa.table(
        {
            "row_id": ids,
            "uri": [f"in/{value}" for value in ids],
            "label": [None if f else first for f, first in zip(failures, firsts, strict=True)],
            "label_id": classes[::3],
            "score": scores[::3].astype("f4"),
            "top_k": pa.ListArray.from_arrays(np.arange(0, 3 * num_rows + 1, 3, "i4"), entries),
            **failure_columns(failures),
        },
        schema=schema,
    )


def stage(store: Store, tables: list[pa.Table]) -> list[SizedSlice]:
    writer = StagingWriter(store, "staging", "r", "zstd", {})
    start, keys = 0, []
    for index, table in enumerate(tables):
        end = start + table.num_rows
        keys.append(SliceKey(0, start, end, is_last=index == len(tables) - 1))
        writer.write(keys[-1], {}, table)
        start = end
    files = store.list_files("staging")
    return [(key, f.path, float(f.size_bytes)) for key, f in zip(keys, files, strict=True)]


def compact(
    store: Store, slices: list[SizedSlice], target_bytes: float, compression: str = "zstd"
) -> Compacted:
    compactor = Compactor(
        store, "out", VERSION, SCHEMA, compression, {"who": "me"}, target_bytes, store
    )
    return compact_slices(compactor, slices, (), {}, run_here)


def open_part(store: Store, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(store.read_bytes(f"out/{path}")))


def lengthen(index: int) -> str:
    rng = np.random.default_rng(index)
    return "".join(str(rng.random()) for _ in range(index // 25))


@pytest.mark.parametrize(
    ("num_slices", "rows_per_slice", "tail", "bad_every"),
    [
        pytest.param(280, 200, lambda _: "", 0, marks=pytest.mark.slow),
        pytest.param(280, 200, lambda _: "", 20, marks=pytest.mark.slow),
        (240, 200, lengthen, 0),
        (10, 6000, lambda _: "", 0),
    ],
    ids=["small slices", "some rows fail", "ids grow longer", "large slices"],
)
def test_every_part_but_the_last_is_near_its_target(
    tmp_path: Path, num_slices: int, rows_per_slice: int, tail: object, bad_every: int
):
    store = Store(str(tmp_path))
    bad = set(range(3, rows_per_slice, bad_every)) if bad_every else set()
    tables = [
        make_rows(index, rows_per_slice, tail=tail(index), bad=bad)  # type: ignore[operator]
        for index in range(num_slices)
    ]
    slices = stage(store, tables)
    done = compact(store, slices, TARGET_BYTES)
    sizes = [part.size_bytes / TARGET_BYTES for part in done.predictions]
    assert len(sizes) > 7  # two groups or more
    assert all(0.5 <= size <= 1.5 for size in sizes[:-1]), sizes
    assert sizes[-1] <= 1.5
    staged_bytes = sum(size for _, _, size in slices)
    assert rows_per_slice > 1000 or sum(sizes) * TARGET_BYTES < 0.8 * staged_bytes
    files = [open_part(store, part.path) for part in done.predictions]
    assert [file.metadata.num_rows for file in files] == [p.num_rows for p in done.predictions]
    published = pa.concat_tables([file.read() for file in files])
    everything = pa.concat_tables(tables)
    expected = everything.filter(pa.compute.is_null(everything["error"])).select(SCHEMA.names)
    assert published.equals(expected.replace_schema_metadata(published.schema.metadata))
    quarantined = sum(part.num_rows for part in done.quarantine)
    assert quarantined == everything.num_rows - expected.num_rows


def test_a_small_output_is_one_part(tmp_path: Path):
    store = Store(str(tmp_path))
    tables = [make_rows(index, 50, tail="", bad=set()) for index in range(8)]
    done = compact(store, stage(store, tables), 2.0**27)
    assert [part.num_rows for part in done.predictions] == [400]


@pytest.mark.parametrize("compression", ["zstd", pytest.param("none", marks=pytest.mark.slow)])
def test_a_part_has_statistics_and_dictionaries_for_its_readers(tmp_path: Path, compression: str):
    store = Store(str(tmp_path))
    tables = [make_rows(index, 7000, tail="", bad=set()) for index in range(10)]
    (part,) = compact(store, stage(store, tables), 2.0**27, compression).predictions
    file = open_part(store, part.path)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [65_536, 70_000 - 65_536]
    columns = {
        chunk.path_in_schema: chunk
        for chunk in (groups[0].column(index) for index in range(groups[0].num_columns))
    }
    wanted = {"zstd": "ZSTD", "none": "UNCOMPRESSED"}[compression]
    assert {chunk.compression for chunk in columns.values()} == {wanted}
    with_dictionary = {name for name, c in columns.items() if c.has_dictionary_page}
    assert {"label", "top_k.list.element.label"} <= with_dictionary
    assert with_dictionary.isdisjoint({"row_id", "score", "top_k.list.element.score"})
    for name in ("row_id", "label", "label_id", "score"):
        statistics = columns[name].statistics
        assert statistics.has_min_max
        assert statistics.null_count == 0
    first = pa.concat_tables(tables).slice(0, 65_536)
    assert columns["row_id"].statistics.max == max(first["row_id"].to_pylist())


@pytest.mark.parametrize("num_slices", [0, 3], ids=["no input", "every row fails"])
def test_an_output_without_predictions_still_has_one_part(tmp_path: Path, num_slices: int):
    store = Store(str(tmp_path))
    tables = [make_rows(i, 20, tail="", bad=set(range(20))) for i in range(num_slices)]
    done = compact(store, stage(store, tables), TARGET_BYTES)
    (part,) = done.predictions
    file = open_part(store, part.path)
    assert (part.num_rows, file.metadata.num_rows) == (0, 0)
    assert file.schema_arrow.equals(SCHEMA)
    assert file.schema_arrow.metadata[b"who"] == b"me"
    assert sum(part.num_rows for part in done.quarantine) == 20 * num_slices


PEAK = """
import resource, sys
import numpy as np, pyarrow as pa
from support.runs.published import run_here
from pipeline.commit.parts.compaction import Compactor, compact_slices
from pipeline.core.failures import failure_columns
from pipeline.core.schema import prediction_schema, staged_schema
from pipeline.core.slices import SliceKey
from pipeline.commit.staging import StagingWriter
from pipeline.storage.store import Store

folder, repeats = sys.argv[1], int(sys.argv[2])
ids = [str(row) for row in range(1000)]
noise = np.random.default_rng(1).random(250_000, np.float32)
vectors = pa.FixedSizeListArray.from_arrays(pa.array(noise), 250)
task = [pa.field("embedding", vectors.type)]
rows = pa.table(
    {"row_id": ids, "uri": ids, "embedding": vectors, **failure_columns([None] * 1000)},
    schema=staged_schema([], task),
)
store = Store(folder)
StagingWriter(store, "staging", "r", "zstd", {}).write(SliceKey(0, 0, 1000, True), {}, rows)
(file,) = store.list_files("staging")
slices = [(SliceKey(0, 0, 1000, True), file.path, float(file.size_bytes))] * repeats
schema = prediction_schema([], task)
compactor = Compactor(store, "out", "000001-0123456789ab", schema, "zstd", {}, 12e6, store)
parts = compact_slices(compactor, slices, (), {}, run_here).predictions
print(len(parts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_one_part(tmp_path: Path):
    peaks_kib = {}
    for repeats in (25, 150):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / str(repeats)), str(repeats)],
            cwd=tmp_path,
            env={"PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        num_parts, peak_kib = map(int, done.stdout.split())
        peaks_kib[num_parts] = peak_kib
    few, many = sorted(peaks_kib)
    assert (few, many) >= (2, 12)
    # All 150 MB at once would show; one part and what is read ahead of it is 12 MB and 16 MiB.
    assert peaks_kib[many] - peaks_kib[few] < 80 * 1024, peaks_kib
