"""An output of made-up predictions over a real input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.plan_store import adopt_plan
from pipeline.published.originals import OriginalFinder
from pipeline.storage.store import Store
from support.runs.published import Rows, labels_of, publish_rows
from support.runs.reading import read_whole

IMAGES: dict[str, Any] = {}
TEXTS = {"text_column": "text"}


def publish_over(
    folder: Path,
    rows: Rows,
    values: Callable[[int], Any],
    fields: dict[str, Any] = IMAGES,
    partition: str = "date=2026-11-24",
) -> OriginalFinder:
    """Publish `rows` as predictions of shards whose row n holds `values(n)`.

    Args:
        folder: Gets `in` and `out`.
        rows: What is published.
        values: Image or text of a row, counted over all shards.
        fields: Of the source.
        partition: Which.
    """
    source = folder / "in"
    source.mkdir(exist_ok=True)
    name = fields.get("text_column", "image")
    for index in range(rows.num_slices):
        first = index * rows.rows_per_slice
        column = [values(first + row) for row in range(rows.rows_per_slice)]
        pq.write_table(pa.table({name: column}), source / f"shard-{index}.parquet")
    _, plan = read_whole(source, 64, **fields)
    store, layout = Store(str(folder / "out")), Layout(partition)
    manifest = publish_rows(store, partition, rows)
    plan = adopt_plan(store, layout, plan)
    document = {"format": "parquet", **fields}
    published = replace(
        manifest,
        fingerprint=plan.fingerprint,
        plan=plan.work,
        source=document,
        distribution={"labels": dict(labels_of(rows))},
    )
    return OriginalFinder(store, layout, Manifest.from_json(published.to_json(), "log"), {})


def ids_of(rows: Rows) -> Sequence[str]:
    """The ids of all rows, in order."""
    return [row_id for index in range(rows.num_slices) for row_id in rows.ids(index)]
