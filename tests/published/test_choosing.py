"""The chosen rows are those that a look at all rows would choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs.published import Rows, publish_rows

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Part
from pipeline.core.schema import DETECTIONS, ENTITIES, LABEL, SCORE
from pipeline.published import sheets as choosing
from pipeline.published.dataset import PublishedPart, PublishedParts
from pipeline.published.sheets import least_certain
from pipeline.reuse.version_rows import PartPlace
from pipeline.storage.store import Store

NAMES = ("cat", "dog", "fox", "owl")


def entries(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    return [
        {LABEL: NAMES[rng.integers(4)], SCORE: float(np.float32(rng.random()))}
        for _ in range(number)
    ]


@pytest.mark.parametrize("column", [DETECTIONS, ENTITIES, SCORE])
@pytest.mark.parametrize("part_rows", [7, 1000])
def test_parts_give_what_all_rows_at_once_give(
    column: str, part_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choosing, "_BATCH_ROWS", 5)
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
    table = table.append_column("number", pa.array(range(300)))
    least, looked_at = least_certain(parts_of(tmp_path, table, part_rows), column, 9, ["number"])
    judge = min if column == ENTITIES else max
    certain = [
        (judge(entry[SCORE] for entry in row), number) for number, row in enumerate(rows) if row
    ]
    assert least.column("number").to_pylist() == [number for _, number in sorted(certain)[:9]]
    assert looked_at == 300


def parts_of(folder: Path, table: pa.Table, part_rows: int) -> PublishedParts:
    store, parts = Store(str(folder)), []
    for start in range(0, table.num_rows, part_rows):
        piece, path = table.slice(start, part_rows), f"part-{start}.parquet"
        pq.write_table(piece, folder / path)
        part = Part(path, piece.num_rows, (folder / path).stat().st_size, "")
        parts.append(PublishedPart(PartPlace(part, path), {}))
    return PublishedParts(store, "predictions", tuple(parts))


def test_labels_that_are_folders_are_those_of_the_rows(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout("date=2026-11-24")
    manifest = publish_rows(store, layout.partition, Rows(partition_columns=("label",)))
    parts = PublishedParts.of(store, [(layout, manifest)], "predictions")
    rows, _ = least_certain(parts, SCORE, 24)
    assert rows.num_rows == manifest.num_predicted
    labels = {row["row_id"]: row["label"] for row in parts.dataset().to_table().to_pylist()}
    assert {row["row_id"]: row["label"] for row in rows.to_pylist()} == labels
