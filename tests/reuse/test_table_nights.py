"""Promise: only changes of a table are computed, and its partition is that of a whole run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
import torch
from pyiceberg.types import LongType
from support.inputs.delta_tables import DeltaTable
from support.inputs.iceberg_tables import (
    TABLE,
    catalog_at,
    delete_rows,
    folder_of,
    live_files,
    options_at,
)
from support.models.model_cases import colours_state
from support.runs.carried_runs import assert_as_all_computed
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import image

from pipeline.commit.manifest import current_manifest
from pipeline.core.errors import InputMissing
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

TYPES: dict[str, Any] = {"image": pa.binary(), "note": pa.string(), "other": pa.string()}


class Nights:
    """A table that changes, and the partition of its predictions."""

    def __init__(self, tmp_path: Path, reuse: str = "inputs", mapping: Any = "name") -> None:
        self.tmp_path, self._pixels = tmp_path, 0
        self.table = DeltaTable(tmp_path / "in", mapping)
        self.rows: dict[str, pa.Table] = {}
        self.deleted: dict[str, set[int]] = {}
        source = {"format": "delta", "pass_through": ["note"]}
        sections = {"run": {"reuse": reuse}}
        out = Store(str(tmp_path / "out"))
        self.partition = EarlierPartition(str(tmp_path / "in"), out, source, sections=sections)
        self.partition.weights = str(tmp_path / "weights.pt")
        torch.save(colours_state(), self.partition.weights)

    def add(self, path: str, num_rows: int) -> None:
        begin, self._pixels = self._pixels, self._pixels + num_rows
        numbers = range(begin, self._pixels)
        columns = {
            "image": [image(number) for number in numbers],
            "note": [f"note {number}" for number in numbers],
            "other": [f"other {number}" for number in numbers],
        }
        self.rows[path], self.deleted[path] = pa.table(columns), set()
        self.table.commit(self._columns(), {path: self.rows[path]})

    def delete(self, path: str, rows: set[int]) -> None:
        self.deleted[path] |= rows
        self.table.commit(self._columns(), deleted={path: sorted(self.deleted[path])})

    def remove(self, path: str) -> None:
        del self.rows[path], self.deleted[path]
        self.table.commit(self._columns(), removed=[path])

    def swap(self) -> None:
        """Rename two columns to each other's names."""
        keys = {name: key for name, (_, key) in self.table.columns.items()}
        swapped = {"image": "image", "note": "other", "other": "note"}
        self.table.commit({name: (TYPES[name], keys[was]) for name, was in swapped.items()})

    def num_live(self) -> int:
        return sum(rows.num_rows - len(self.deleted[path]) for path, rows in self.rows.items())

    def _columns(self) -> dict[str, Any]:
        return self.table.columns or TYPES


def test_a_night_computes_the_rows_of_new_files_alone_and_drops_deleted_ones(tmp_path: Path):
    nights = Nights(tmp_path)
    for name in "ab":
        nights.add(f"{name}.parquet", 40)
    nights.partition.run()
    assert len(nights.partition.computed) == 80
    nights.delete("a.parquet", {0, 7, 8, 39})
    nights.add("c.parquet", 3)
    nights.partition.run()
    rows = nights.partition.report()["rows"]
    assert rows["total"] == rows["computed"] + rows["carried"] == 79
    assert rows["carried"] >= 40, "the others are new, or computed again as a check"
    assert_as_all_computed(nights.partition, tmp_path)

    assert nights.partition.current().source["options"] == {"version": 3}
    nights.table.commit(nights.table.columns)
    log = nights.partition.current().number
    nights.partition.run()
    assert nights.partition.current().number == log, "the same files, rows and columns"
    assert nights.partition.computed == []


def test_rows_that_a_table_restores_are_computed(tmp_path: Path):
    nights = Nights(tmp_path)
    nights.add("a.parquet", 30)
    nights.delete("a.parquet", {3, 4, 29})
    nights.partition.run()
    nights.table.commit(nights.table.columns, deleted={"a.parquet": [4]})
    nights.partition.run()
    assert {"a.parquet#3", "a.parquet#29"} <= {*nights.partition.computed}
    assert nights.partition.current().num_predicted == 29
    assert_as_all_computed(nights.partition, tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_nights_over_a_table_that_changes_equal_whole_runs(seed: int, tmp_path: Path):
    chance = random.Random(seed)
    nights = Nights(tmp_path, chance.choice(["inputs", "content"]), chance.choice(["name", "id"]))
    for number in range(2):
        nights.add(f"{number}.parquet", chance.randrange(5, 30))
    for night in range(5):
        earlier = {*nights.rows}
        for _ in range(chance.randrange(1, 4)):
            path = chance.choice([*nights.rows])
            step = chance.choice(["add", "delete", "delete", "remove", "swap"])
            live = {*range(nights.rows[path].num_rows)} - nights.deleted[path]
            if step == "add" or len(nights.rows) < 2:
                nights.add(f"{night}-{len(nights.rows)}-{nights.num_live()}.parquet", 7)
            elif step == "delete" and live:
                some = chance.sample(sorted(live), chance.randrange(len(live)) or 1)
                nights.delete(path, {*some})
            elif step == "remove":
                nights.remove(path)
            else:
                nights.swap()
        if nights.num_live():
            nights.partition.broken = {f"{path}#1" for path in nights.rows if path not in earlier}
            nights.partition.run()
            assert nights.partition.current().num_rows == nights.num_live()
            assert_as_all_computed(nights.partition, tmp_path)
            nights.partition.broken = set()
            nights.partition.retry()
            assert_as_all_computed(nights.partition, tmp_path)


def test_a_night_over_an_iceberg_table_computes_the_rows_of_new_files_alone(tmp_path: Path):
    columns = {"image": [image(number) for number in range(90)], "note": ["a"] * 90}
    rows = pa.table(columns)
    table = catalog_at(tmp_path).create_table(TABLE, schema=rows.schema)
    table.append(rows.slice(0, 80))
    source = {"format": "iceberg", "pass_through": ["note"], "options": options_at(tmp_path)}
    out = Store(str(tmp_path / "out"))
    sections = {"run": {"reuse": "inputs"}}
    partition = EarlierPartition(str(folder_of(table)), out, source, sections=sections)
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    partition.run()
    assert len(partition.computed) == 80
    [first] = live_files(table)
    delete_rows(table, {first.file_path: [0, 7, 79]}, "vector")
    table.append(rows.slice(80))
    partition.run()
    report = partition.report()["rows"]
    assert report["total"] == report["computed"] + report["carried"] == 87
    assert report["carried"] >= 40, "the others are new, or computed again as a check"
    assert_as_all_computed(partition, tmp_path)
    number = table.current_snapshot().snapshot_id
    assert partition.current().source["options"] == {**options_at(tmp_path), "snapshot": number}
    with table.update_schema() as update:
        update.add_column("unused", LongType())
    partition.run()
    assert partition.computed == [], "the same files, rows and columns"


class DeltaWriter:
    """A foreign writer of a Delta table."""

    def __init__(self, folder: Path, rows: pa.Table) -> None:
        self.folder, self.format = folder / "in", "delta"
        deltalake.write_deltalake(self.folder, rows)

    def append(self, rows: pa.Table) -> None:
        deltalake.write_deltalake(self.folder, rows, mode="append")

    def delete(self, rows: pa.Table) -> None:
        deltalake.DeltaTable(self.folder).delete("note in ('note 3', 'note 25')")

    def replace_and_remove(self, rows: pa.Table) -> None:
        deltalake.write_deltalake(self.folder, rows, mode="overwrite")
        table = deltalake.DeltaTable(self.folder)
        table.vacuum(0, dry_run=False, enforce_retention_duration=False)

    def options(self, *, is_pinned: bool) -> dict[str, Any]:
        return {"version": deltalake.DeltaTable(self.folder).version()} if is_pinned else {}

    def notes(self) -> list[str]:
        return deltalake.DeltaTable(self.folder).to_pyarrow_table()["note"].to_pylist()


class IcebergWriter:
    """A foreign writer of an Iceberg table."""

    def __init__(self, folder: Path, rows: pa.Table) -> None:
        self.catalog, self.format = folder / "catalog", "iceberg"
        self.table = catalog_at(self.catalog).create_table(TABLE, schema=rows.schema)
        self.table.append(rows)
        self.folder = folder_of(self.table)

    def append(self, rows: pa.Table) -> None:
        self.table.append(rows)

    def delete(self, rows: pa.Table) -> None:
        self.table.delete("note in ('note 3', 'note 25')")

    def replace_and_remove(self, rows: pa.Table) -> None:
        gone = [Path(file.file_path.removeprefix("file://")) for file in live_files(self.table)]
        self.table.overwrite(rows)
        *expired, _ = (snapshot.snapshot_id for snapshot in self.table.snapshots())
        self.table.maintenance.expire_snapshots().by_ids(expired).commit()
        for path in gone:
            path.unlink()

    def options(self, *, is_pinned: bool) -> dict[str, Any]:
        number = self.table.current_snapshot().snapshot_id
        return {**options_at(self.catalog), **({"snapshot": number} if is_pinned else {})}

    def notes(self) -> list[str]:
        return self.table.scan().to_arrow()["note"].to_pylist()


class ActedUpon(EarlierPartition):
    """A partition at whose runs another writer acts between the plan and the first row."""

    act: Callable[[], None]

    def stage(self, run: Any, work: Any) -> Any:
        self.act()
        return super().stage(run, work)


def some_rows(first: int, num_rows: int) -> pa.Table:
    numbers = range(first, first + num_rows)
    columns = {"image": [image(n) for n in numbers], "note": [f"note {n}" for n in numbers]}
    return pa.table(columns)


def partition_over(
    writer: Any, tmp_path: Path, *, is_pinned: bool, of: Any = EarlierPartition
) -> Any:
    options = writer.options(is_pinned=is_pinned)
    source = {"format": writer.format, "pass_through": ["note"], "options": options}
    return of(str(writer.folder), Store(str(tmp_path / "out")), source, lease_ttl_s=0.5)


def published_notes(partition: EarlierPartition) -> list[str]:
    return sorted(row["note"] for row in partition.content()[0])


WRITERS, ACTS = (DeltaWriter, IcebergWriter), ("append", "delete", "replace_and_remove")


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("make", WRITERS)
def test_a_run_reads_the_version_that_it_planned_or_ends_with_exit_8(
    make: Any, act: str, tmp_path: Path
):
    writer = make(tmp_path, some_rows(0, 40))
    partition, planned = partition_over(writer, tmp_path, is_pinned=False, of=ActedUpon), []

    def act_once() -> None:
        if not planned:
            planned.extend(writer.notes())
            getattr(writer, act)(some_rows(40, 10))

    partition.act = act_once
    if act == "replace_and_remove":
        with pytest.raises(InputMissing, match=r"gone since the run planned.* run again to read"):
            partition.run()
        assert current_manifest(partition.out, partition.layout) is None
    else:
        partition.run()
        assert published_notes(partition) == sorted(planned)
    partition.run()
    assert published_notes(partition) == sorted(writer.notes()), "the next run reads the newest"


@pytest.mark.parametrize("is_pinned", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("act", [pytest.param("append", marks=pytest.mark.slow), *ACTS[1:]])
@pytest.mark.parametrize("make", WRITERS)
def test_a_killed_run_goes_on_with_the_version_that_its_job_names_or_ends_with_exit_8(
    make: Any, act: str, is_pinned: bool, tmp_path: Path
):
    writer = make(tmp_path, some_rows(0, 40))
    partition, pinned = partition_over(writer, tmp_path, is_pinned=is_pinned), writer.notes()
    partition.run_killed("slice_put:4")
    getattr(writer, act)(some_rows(40, 10))
    if act == "replace_and_remove" and is_pinned:
        for _ in range(2):
            with pytest.raises(InputMissing, match=r"; read a newer (version|snapshot)|VACUUM rem"):
                partition.run()
        assert current_manifest(partition.out, partition.layout) is None
        partition.source["options"] = writer.options(is_pinned=False)
    partition.run()
    if is_pinned and act != "replace_and_remove":
        assert published_notes(partition) == sorted(pinned)
        assert partition.report()["rows"]["resumed"] > 0
    else:
        assert published_notes(partition) == sorted(writer.notes())
    verify_output(partition.out.uri, partition.partition, {})
