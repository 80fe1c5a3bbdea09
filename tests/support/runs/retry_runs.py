"""Jobs over inputs of every format that are run and retried, without Ray and without a model."""

from __future__ import annotations

import base64
import gzip
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store import Store
from support.inputs.tars import Entry, pack
from support.runs.earlier_partitions import EarlierPartition

NUM_ROWS = 40
CAMERAS = ("front", "back", None)


def image(row: int) -> bytes:
    return b"image %d" % row


def write_images(folder: Path) -> dict[str, Any]:
    for row in range(NUM_ROWS):
        (folder / f"{row:03d}.jpg").write_bytes(image(row))
    return {"format": "images"}


def write_parquet(folder: Path, **columns: list[Any]) -> dict[str, Any]:
    """Four shards of ten rows, in row groups of three."""
    table = pa.table(
        {
            "image": [image(row) for row in range(NUM_ROWS)],
            "camera": [CAMERAS[row % 3] for row in range(NUM_ROWS)],
            **columns,
        }
    )
    for shard in range(4):
        path = folder / f"s{shard}.parquet"
        pq.write_table(table.slice(10 * shard, 10), path, row_group_size=3)
    return {"format": "parquet", "pass_through": ["camera"]}


def write_ids(folder: Path) -> dict[str, Any]:
    source = write_parquet(folder, id=[f"id-{row}" for row in range(NUM_ROWS)])
    return {**source, "id_column": "id"}


def write_links(folder: Path) -> dict[str, Any]:
    (folder / "photos").mkdir()
    for row in range(NUM_ROWS):
        (folder / "photos" / f"{row}.jpg").write_bytes(image(row))
    source = write_parquet(folder, link=[f"photos/{row}.jpg" for row in range(NUM_ROWS)])
    return {**source, "uri_column": "link"}


def write_tars(folder: Path) -> dict[str, Any]:
    for shard in range(4):
        rows = range(10 * shard, 10 * shard + 10)
        entries = [
            entry
            for row in rows
            for entry in (Entry(f"k{row}.jpg", image(row)), Entry(f"k{row}.cls", b"%d" % row))
        ]
        (folder / f"t{shard}.tar").write_bytes(pack(entries))
    return {"format": "webdataset", "pass_through": ["cls"]}


def write_lines(folder: Path) -> dict[str, Any]:
    for shard in range(4):
        lines = [
            json.dumps({"image": base64.b64encode(image(row)).decode(), "camera": CAMERAS[row % 3]})
            for row in range(10 * shard, 10 * shard + 10)
        ]
        data = gzip.compress("\n".join(lines).encode(), mtime=0)
        (folder / f"j{shard}.jsonl.gz").write_bytes(data)
    images = {"image_column": "image", "image_encoding": "base64"}
    return {"format": "jsonl", "pass_through": ["camera"], **images}


SOURCES: list[Callable[[Path], dict[str, Any]]] = [
    *(write_images, write_parquet, write_ids, write_links, write_tars)
]


def make_partition(
    tmp_path: Path, write: Callable[[Path], dict[str, Any]], **sections: Any
) -> EarlierPartition:
    folder = tmp_path / "in"
    folder.mkdir()
    return EarlierPartition(
        str(folder), Store(str(tmp_path / "out")), write(folder), sections=sections
    )


def whole_partition(partition: EarlierPartition, tmp_path: Path) -> EarlierPartition:
    """The same without failures."""
    store, sections = Store(str(tmp_path / "whole")), partition.sections
    whole = EarlierPartition(partition.inputs, store, partition.source, sections=sections)
    whole.run()
    return whole


def all_ids(partition: EarlierPartition, tmp_path: Path) -> list[str]:
    whole = EarlierPartition(partition.inputs, Store(str(tmp_path / "ids")), partition.source)
    whole.run()
    return [row["row_id"] for row in whole.content()[0]]


def make_partition_again(partition: EarlierPartition, **sections: Any) -> EarlierPartition:
    return EarlierPartition(partition.inputs, partition.out, partition.source, sections=sections)


def write_csv(folder: Path) -> dict[str, Any]:
    """Four shards of ten lines with commas."""
    for shard in range(4):
        rows = range(10 * shard, 10 * shard + 10)
        lines = [f"{b64encode(image(row)).decode()},c{row % 3}" for row in rows]
        (folder / f"c{shard}.csv").write_text("\n".join(["photo,camera", *lines]))
    columns = {"image_column": "photo", "image_encoding": "base64", "pass_through": ["camera"]}
    return {"format": "csv", **columns}
