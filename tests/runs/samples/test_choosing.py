"""The chosen rows are those that a look at all rows would choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.runs.published import Rows, publish_rows

from pipeline.commit.layout import Layout
from pipeline.core.schema import DETECTIONS, ENTITIES, LABEL, SCORE
from pipeline.runs.samples.choosing import Least, choose
from pipeline.storage.store import Store

NAMES = ("cat", "dog", "fox", "owl")


def entries(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    return [
        {LABEL: NAMES[rng.integers(4)], SCORE: float(np.float32(rng.random()))}
        for _ in range(number)
    ]


@pytest.mark.parametrize("column", [DETECTIONS, ENTITIES, SCORE])
@pytest.mark.parametrize("batch_rows", [7, 1000])
def test_batches_give_what_all_rows_at_once_give(column: str, batch_rows: int):
    rng = np.random.default_rng(5)
    if column == SCORE:
        rows = [entries(rng, 1) if rng.random() < 0.9 else [] for _ in range(300)]
        flat = [row[0] if row else {LABEL: None, SCORE: None} for row in rows]
        table = pa.Table.from_pylist(
            flat, schema=pa.schema([(LABEL, pa.string()), (SCORE, pa.float32())])
        )
    else:
        rows = [entries(rng, int(rng.integers(4))) for _ in range(300)]
        of_list = pa.list_(pa.struct([(LABEL, pa.string()), (SCORE, pa.float32())]))
        table = pa.table({column: pa.array([row or None for row in rows], of_list)})
    least, seen = Least(9), 0
    for batch in table.to_batches(max_chunksize=batch_rows):
        least.add(seen, batch, column)
        seen += batch.num_rows
    judge = min if column == ENTITIES else max
    certain = [
        (judge(entry[SCORE] for entry in row), number) for number, row in enumerate(rows) if row
    ]
    assert least.rows == sorted(certain)[:9]


def test_rows_of_a_version_are_read_by_their_numbers(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout("date=2026-11-24")
    manifest = publish_rows(store, layout.partition, Rows(unreadable_shards=1))
    found = choose(store, layout, manifest, 3)
    assert [row["row_id"] for row in found.rows] == [f"shard-0.parquet#{n}" for n in range(3)]
    assert (found.has_scores, found.num_looked_at) == (True, manifest.num_predicted)


def test_labels_that_are_folders_are_those_of_the_rows(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout("date=2026-11-24")
    manifest = publish_rows(store, layout.partition, Rows(partition_columns=("label",)))
    found = choose(store, layout, manifest, 24)
    assert len(found.rows) == manifest.num_predicted
    assert {row["label"] for row in found.rows} == {"cat", "dog", "fox"}
