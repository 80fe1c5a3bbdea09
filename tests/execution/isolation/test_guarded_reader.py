"""A shard that ends its reader fails only its own rows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadly import die_over
from support.inputs.tars import files
from support.inputs.tars import pack as pack_tar
from support.runs.reading import plan_job
from support.servers.faultproxy import STALL, FaultProxy, Rule
from support.servers.object_stores import S3Server

from pipeline.core.failures import Reason
from pipeline.core.figures import merge
from pipeline.core.slices import SliceKey, unpack
from pipeline.execution.isolation import guarded_reader
from pipeline.execution.isolation.child_process import ChildExit, ChildResult
from pipeline.execution.isolation.crash_guard import GIVE_UP_AFTER
from pipeline.execution.isolation.crash_marks import CrashMarks
from pipeline.execution.isolation.guarded_reader import UnitReading, read_guarded
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit
from pipeline.storage.store import Store

KINDS = ["parquet", pytest.param("webdataset", marks=pytest.mark.slow)]
ROW_TIMEOUT_S = 0.5
"""A slice has ten times this limit."""


class Case:
    """One unit, and the crash marks of a run."""

    def __init__(self, folder: Path, reader: Reader, unit: Unit) -> None:
        self.reader, self.unit = reader, unit
        self.attempts = CrashMarks(folder / "marks")
        self.counters: dict[str, Any] = {}

    def die(self, times: int = 1) -> None:
        for _ in range(times):
            die_over(self.attempts, f"read-{self.unit.index}")

    def read(self) -> dict[SliceKey, pa.Table]:
        starts = {key.start for key in self.unit.slices()} if self.unit.cut is None else set()
        slices = {}
        for packed in read_guarded(self.reader, self.unit, starts, self.attempts, ROW_TIMEOUT_S):
            [(key, counters, rows, _)] = unpack(packed)
            slices[key] = rows
            assert rows.num_rows == key.num_rows
            self.counters = merge(self.counters, counters)
        assert list(self.attempts.folder.iterdir()) == []
        return slices


def make(folder: Path, case_name: str) -> Case:
    """Plan three shards; return the case of the unit with shard b."""
    shards = folder / "in"
    shards.mkdir()
    for name in ("a", "b", "c"):
        images = {f"{name}{i}__jpg": f"{name}:{i}".encode() for i in range(5)}
        if case_name == "parquet":
            table = pa.table({"image": list(images.values())})
            pq.write_table(table, shards / f"{name}.parquet")
        else:
            (shards / f"{name}.tar").write_bytes(pack_tar(files(**images)))
    reader, plan = plan_job(shards, 4 if case_name == "webdataset" else 12, format=case_name)
    unit = plan.units[1 if case_name == "webdataset" else 0]
    return Case(folder, reader, unit)


@contextlib.contextmanager
def stalled(s3: S3Server, folder: Path, case_name: str, name: str) -> Iterator[Case]:
    """Plan three shards in a bucket, one of which then stalls: a read of it never returns."""
    store = s3.store()
    case = make(folder, case_name)
    for path in (folder / "in").iterdir():
        store.put(path.name, path.read_bytes())
    reader, plan = plan_job(
        store.uri,
        4 if case_name == "webdataset" else 12,
        format=case_name,
        storage_options=s3.storage_options,
    )
    rule = Rule(STALL, method="GET", path=name, last=1000)
    with FaultProxy(s3.endpoint_url, rule) as proxy:
        behind = Store(store.uri, s3.options_at(proxy.url))
        yield Case(folder, replace(reader, store=behind), plan.units[case.unit.index])


@pytest.mark.parametrize("case_name", KINDS)
def test_a_reader_that_was_killed_costs_nothing_but_a_child(case_name: str, tmp_path: Path) -> None:
    case = make(tmp_path, case_name)
    undisturbed = case.read()
    assert "isolated" not in case.counters
    read, case.counters = case.counters["read"], {}
    case.die(2)
    assert case.read() == undisturbed
    assert case.counters["isolated"]["dead_processes"] == 2
    assert {**case.counters["read"], "busy_s": 0, "retries": 0} == {
        **read, "busy_s": 0, "retries": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_a_child_reads_what_is_too_large_for_memory_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    large = pa.DictionaryArray.from_arrays([0] * 40, pa.array([b"i" * (20 << 20)]))
    shard = tmp_path / "in" / "a.parquet"
    pq.write_table(pa.table({"image": large}), shard, compression="zstd")
    reader, plan = plan_job(tmp_path / "in", 40)
    case = Case(tmp_path, reader, plan.units[0])
    case.die()
    slices = case.read()
    assert len(slices) > 1
    assert sum(key.num_rows for key in slices) == 40
    assert all(rows.column("error").null_count == rows.num_rows for rows in slices.values())
    assert case.counters["read"]["rows_out"] == 40
    assert case.counters["isolated"]["dead_processes"] == 1


@pytest.mark.slow
def test_a_shard_that_stops_its_reader_costs_its_rows(s3: S3Server, tmp_path: Path) -> None:
    with stalled(s3, tmp_path, "parquet", "b.parquet") as case:
        case.die()
        rows = pa.concat_tables(case.read().values())
    ids = [f"{name}.parquet#{row}" for name in "abc" for row in range(5)]
    assert rows.column("row_id").to_pylist() == ids
    errors = [Reason.TIMEOUT if row_id.startswith("b") else None for row_id in ids]
    assert rows.column("error").to_pylist() == errors
    read = case.counters["read"]
    assert (read["rows_in"], read["rows_out"], read["rows_quarantined"]) == (15, 10, 5)
    assert case.counters["isolated"]["num_quarantined"] == 5


@pytest.mark.slow
def test_a_tar_that_stops_its_reader_is_an_unreadable_shard(s3: S3Server, tmp_path: Path) -> None:
    with stalled(s3, tmp_path, "webdataset", "b.tar") as case:
        case.die()
        [(key, rows)] = case.read().items()
    assert key == SliceKey(1, 0, 1, is_last=True)
    [row] = rows.to_pylist()
    assert (row["row_id"], row["error"], row["error_stage"]) == (
        "b.tar", Reason.UNREADABLE_SHARD, "read",
    )  # fmt: skip
    assert "no result after 5 s" in row["message"]


class DyingReaders:
    """A child that reads in this process, and ends at the first and the third call."""

    calls: Iterator[int]
    """Numbers from 0, of the calls of all children."""

    def __init__(self, work: UnitReading, call_s: float, start_s: float) -> None:
        self._steps = work.open()

    def call(self, stage: str, rows: pa.Table) -> ChildResult | ChildExit:
        if next(self.calls) in (0, 2):
            return ChildExit(Reason.NATIVE_CRASH, "killed")
        return ChildResult(self._steps[stage](rows, {}), {})

    def close(self) -> None:
        """Nothing is open."""


def test_only_readers_that_end_at_one_place_make_a_shard_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make(tmp_path, "webdataset")
    undisturbed, case.counters = case.read(), {}
    monkeypatch.setattr(DyingReaders, "calls", itertools.count(), raising=False)
    monkeypatch.setattr(guarded_reader, "Child", DyingReaders)
    case.die()
    assert case.read() == undisturbed
    assert case.counters["isolated"]["dead_processes"] == 3


@pytest.mark.parametrize("case_name", KINDS)
def test_a_unit_that_keeps_killing_its_readers_is_given_up(case_name: str, tmp_path: Path) -> None:
    case = make(tmp_path, case_name)
    case.die(GIVE_UP_AFTER)
    errors = {error for rows in case.read().values() for error in rows.column("error").to_pylist()}
    assert errors == {Reason.NATIVE_CRASH if case_name == "parquet" else Reason.UNREADABLE_SHARD}
