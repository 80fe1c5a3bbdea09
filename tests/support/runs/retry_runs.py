"""Jobs over inputs of every format that are run and retried, without Ray and without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.store import Store
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import KINDS

NUM_ROWS, SHARD_ROWS = 40, 10


def write_shards(folder: Path, kind: str, prefix: str = "s") -> dict[str, Any]:
    """Write rows in order, as files or as shards; return the source of a job over them."""
    made = KINDS[kind]
    size = 1 if made.is_file else SHARD_ROWS
    for number in range(NUM_ROWS // size):
        name = f"{number:03d}" if made.is_file else f"{prefix}{number}"
        rows = range(number * size, (number + 1) * size)
        made.write(folder / f"{name}{made.suffix}", rows)
    return dict(made.source)


def write_images(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "images")


def write_parquet(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "parquet")


def write_ids(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "ids")


def write_links(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "uris")


def write_tars(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "tars", "t")


def write_lines(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "jsonl", "j")


def write_csv(folder: Path) -> dict[str, Any]:
    return write_shards(folder, "csv", "c")


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
