"""Jobs that carry rows over or are retried, without Ray and without a model.

A night of `Inputs` carries rows from three versions: the current one, one in the history, and
another partition's. Files of a folder keep their times while the folder is away.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import log_numbers, read_manifest
from pipeline.commit.parts.compaction import Compacted
from pipeline.commit.published.verify import verify_output
from pipeline.commit.shard_table import PLACES, NoKeys, read_shard_table, write_shard_table
from pipeline.core.environment import FAILPOINT
from pipeline.process import failpoints
from pipeline.storage.store import Store
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import KINDS, image

YESTERDAY, TODAY, TOMORROW = "date=2026-11-24", "date=2026-11-25", "date=2026-11-26"
FOLDERS = {"a": 40, "b": 16, "c": 16}
BROKEN = frozenset({"a/003.jpg", "b/001.jpg"})
KEEP_VERSIONS = 1
NUM_ROWS, SHARD_ROWS = 40, 10


def make_partition(
    tmp_path: Path,
    kind: str = "images",
    *,
    num_rows: int = NUM_ROWS,
    has_weights: bool = False,
    **sections: Any,
) -> EarlierPartition:
    """A job over rows in order, as files or as shards of ten.

    Args:
        has_weights: The model has some in a file, so that rows can be carried over.
    """
    made, folder = KINDS[kind], tmp_path / "in"
    folder.mkdir()
    size = 1 if made.is_file else SHARD_ROWS
    for number in range(num_rows // size):
        name = f"{number:03d}" if made.is_file else f"s{number}"
        rows = range(number * size, (number + 1) * size)
        made.write(folder / f"{name}{made.suffix}", rows)
    out, source = Store(str(tmp_path / "out")), dict(made.source)
    partition = EarlierPartition(str(folder), out, source, sections=sections)
    if has_weights:
        partition.weights = str(tmp_path / "weights.pt")
        torch.save(colours_state(), partition.weights)
    return partition


@dataclass(frozen=True)
class Inputs:
    """Photos in folders, and the weights of the model."""

    folder: Path
    kind: str = "inputs"
    """What `run.reuse` says."""

    @property
    def photos(self) -> Path:
        return self.folder / "in"

    @classmethod
    def write(cls, folder: Path, kind: str = "inputs") -> Inputs:
        inputs = cls(folder, kind)
        for name, num_files in FOLDERS.items():
            (inputs.photos / name).mkdir(parents=True)
            for number in range(num_files):
                path = inputs.photos / name / f"{number:03d}.jpg"
                path.write_bytes(image(100 * ord(name) + number))
        torch.save(colours_state(), folder / "weights.pt")
        return inputs

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        for name in names:
            (self.photos / name).rename(self.folder / name)
        yield
        for name in names:
            (self.folder / name).rename(self.photos / name)

    def change(self) -> None:
        """Add, change and remove photos."""
        (self.photos / "a" / "900.jpg").write_bytes(image(900))
        (self.photos / "b" / "002.jpg").write_bytes(image(901))
        (self.photos / "c" / "003.jpg").unlink()

    def night(
        self, store: Store, partition: str = TODAY, *, reuse: bool = True, **sections: Any
    ) -> EarlierPartition:
        sink = {"target_part_mib": 0.012, "keep_versions": KEEP_VERSIONS}
        sections["sink"] = {**sink, **sections.get("sink", {})}
        sections["run"] = {"reuse": self.kind, **sections.get("run", {})}
        weights = str(self.folder / "weights.pt")
        return EarlierPartition(
            *(str(self.photos), store, {"format": "images"}, set(BROKEN), sections, weights),
            reuse=reuse,
            partition=partition,
        )

    def publish_earlier(self, store: Store) -> None:
        """Publish yesterday, and today twice, so that each version alone has one of the folders."""
        self.night(store, YESTERDAY).run()
        with self.without("c"):
            self.night(store).run()
            with self.without("b"):
                self.night(store).run()


def run_night(inputs: Inputs, store: Store) -> None:
    """Publish today's next version."""
    inputs.night(store).run()


def stop_at(point: str, act: Callable[[], object]) -> None:
    """Let a run end as if it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "_reached", Counter())
        patch.setenv(FAILPOINT, f"{point}:raise")
        with pytest.raises(RuntimeError, match=point):
            act()


def age_versions(store: Store, days: int) -> None:
    """Let the rows of all versions have been computed earlier, by the tables of their shards."""
    layouts = [Layout(name) for name in store.list_folders("_control")]
    for layout, number in ((each, n) for each in layouts for n in log_numbers(store, each)):
        manifest = read_manifest(store, layout, number)
        try:
            table = read_shard_table(store, layout, manifest)
            path = Path(store.uri) / manifest.keys["folder"] / PLACES
            order = pq.read_table(path).column(0).to_numpy() if path.exists() else None
        except (NoKeys, OSError):
            continue
        ranks = np.argsort(order) if order is not None else None
        shards = [replace(s, computed_day=s.computed_day - days) for s in table.shards]
        parts = Compacted(manifest.parts, (), ranks=ranks)
        keys = write_shard_table(store, manifest.keys["folder"], table.about, shards, parts)
        store.put(layout.log_entry(number), replace(manifest, keys=keys).to_json())


def run_whole(partition: EarlierPartition, folder: Path, **changes: Any) -> EarlierPartition:
    """Publish below a folder what a run of all rows does, with other values of some fields."""
    out = Store(str(folder / f"whole-{uuid.uuid4().hex}"))
    whole = replace(partition, out=out, reuse=False, said=[], computed=[], **changes)
    whole.run()
    return whole


def assert_as_all_computed(partition: EarlierPartition, folder: Path, **changes: Any) -> None:
    """Compare predictions, quarantine and proofs with those of a run of all rows."""
    whole = run_whole(partition, folder, **changes)
    assert partition.content() == whole.content()
    ours, theirs = partition.current(), whole.current()
    assert (ours.fingerprint, ours.row_id_hash) == (theirs.fingerprint, theirs.row_id_hash)
    assert (ours.num_rows, ours.num_predicted) == (theirs.num_rows, theirs.num_predicted)
    if "duplicate_id" not in partition.failed().values():  # whose numbers stay among the others
        assert ours.distribution == theirs.distribution
    found = verify_output(partition.out.uri, partition.partition, {})
    assert found["status"] == "ok", found
