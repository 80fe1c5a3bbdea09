"""Jobs that carry or retry rows, without Ray and without a model."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from pipeline.published.verify import verify_output
from pipeline.storage.store import Store
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import FORMATS, image

YESTERDAY, TODAY, TOMORROW = "date=2026-11-24", "date=2026-11-25", "date=2026-11-26"
NUM_ROWS, SHARD_ROWS = 40, 10


def make_partition(
    tmp_path: Path,
    input_format: str = "images",
    *,
    num_rows: int = NUM_ROWS,
    shard_rows: int = SHARD_ROWS,
    contents: int | None = None,
    folders: Sequence[str] = ("",),
    has_weights: bool = False,
    **sections: Any,
) -> EarlierPartition:
    """A job over rows in order, as files or as shards.

    Args:
        num_rows: In each folder.
        contents: After so many rows they begin anew.
        has_weights: The model has some in a file, so that rows can be carried over.
    """
    form, rows = FORMATS[input_format], count()
    size = 1 if form.is_file else shard_rows
    for folder in folders:
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number in range(num_rows // size):
            name = f"{number:03d}" if form.is_file else f"s{number}"
            some = [row % (contents or row + 1) for row in islice(rows, size)]
            form.write(tmp_path / "in" / folder / f"{name}{form.suffix}", some)
    out, source = Store(str(tmp_path / "out")), dict(form.source)
    partition = EarlierPartition(str(tmp_path / "in"), out, source, sections=sections)
    if has_weights:
        partition.weights = str(tmp_path / "weights.pt")
        torch.save(colours_state(), partition.weights)
    return partition


def make_photos(tmp_path: Path, reuse: str = "inputs") -> EarlierPartition:
    """A job of today over photos in three folders, of which two cannot be decoded."""
    sections = {"sink": {"target_part_mib": 0.012, "keep_versions": 1}, "run": {"reuse": reuse}}
    photos = make_partition(tmp_path, num_rows=24, folders="abc", has_weights=True, **sections)
    photos.broken, photos.partition = {"a/003.jpg", "b/001.jpg"}, TODAY
    return photos


def change(partition: EarlierPartition, *names: str, first: int = 1000) -> None:
    """Write other photos into files of the source."""
    for number, name in enumerate(names, first):
        (Path(partition.inputs) / name).write_bytes(image(number))


@contextmanager
def without(partition: EarlierPartition, *folders: str) -> Iterator[None]:
    """Take folders away for a while; their files keep their times."""
    root = Path(partition.inputs)
    for name in folders:
        (root / name).rename(root.parent / name)
    yield
    for name in folders:
        (root.parent / name).rename(root / name)


def run_whole(partition: EarlierPartition, folder: Path, **changes: Any) -> EarlierPartition:
    """Publish below a folder what a run of all rows does, with other values of some fields."""
    out = Store(str(folder / f"whole-{uuid.uuid4().hex}"))
    whole = replace(partition, out=out, reuse=False, **changes)
    whole.run()
    return whole


def assert_as(partition: EarlierPartition, whole: EarlierPartition, *others: str) -> None:
    """Compare predictions, quarantine and proofs with those of a run of all rows.

    Args:
        others: Partitions of the same output that have to be intact as well.
    """
    assert partition.content() == whole.content()
    ours, theirs = partition.current(), whole.current()
    assert (ours.fingerprint, ours.row_id_hash) == (theirs.fingerprint, theirs.row_id_hash)
    assert (ours.num_rows, ours.num_predicted) == (theirs.num_rows, theirs.num_predicted)
    if "duplicate_id" not in partition.failed().values():  # whose numbers stay among the others
        assert ours.distribution == theirs.distribution
    out = partition.out
    for name in (partition.partition, *others):
        verified = verify_output(out.uri, name, dict(out.storage_options))
        assert verified["status"] == "ok", verified


def assert_as_all_computed(partition: EarlierPartition, folder: Path, **changes: Any) -> None:
    """Compare what is published with what a run of all rows publishes."""
    assert_as(partition, run_whole(partition, folder, **changes))
