"""Promise: the output alone tells the state of each partition, with two requests for each."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs.published import Rows, publish_rows
from support.runs.report_examples import samples

import pipeline
from pipeline.commit.layout import Layout
from pipeline.commit.lease import Heartbeat, hold_lease
from pipeline.core.errors import GateRefused, JobError, PartitionBusy
from pipeline.operations.status import is_between
from pipeline.published.status import LastRun, PartitionStatus, status_of, survey
from pipeline.storage.interface import Page
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import Store

LONG_S = 1e6
DAYS = [f"date=2026-11-{day}" for day in range(20, 26)]
JOB = {"source": {"uri": "in", "format": "images"}, "model": {"name": "resnet18"}}
BEAT = {"rows": 10, "rows_done": 4, "job": "nightly", "failed_gates": ["label_drift"]}
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
HALF = Heartbeat(run_id="run-2", ttl_s=60.0, rows=200, rows_done=100, host="far", pid=7)


def states(store: Store) -> dict[str, str]:
    return {status.partition: status.state for status in survey(store)}


def run(store: Store, day: str, error: Exception | None = None, run_id: str = "run-9") -> None:
    """Run and publish, or end with an error."""
    try:
        with hold_lease(store, Layout(day), run_id, LONG_S, lambda: BEAT):
            if error:
                raise error
            publish_rows(store, day, run_id=run_id)
    except GateRefused:
        pass


def put_report(store: Store, day: str, run_id: str, code: int, error: str) -> None:
    report = {"run_id": run_id, "exit_code": code, "error": error, "rows": {}, "gates": []}
    store.put(Layout(day).report(run_id, "report.json"), json.dumps(report).encode())


def make_week(store: Store) -> None:
    run(store, DAYS[0])
    run(store, DAYS[1], GateRefused("no"))
    put_report(store, DAYS[2], "20261124T020000Z-1a2b3c4d", 8, "no folder")
    publish_rows(store, DAYS[3])
    with hold_lease(store, Layout(DAYS[4]), "run-9", LONG_S, lambda: BEAT) as lease:
        beat = store.read_bytes(Layout(DAYS[4]).heartbeat(lease.epoch))
    # As if its process had been killed: the last words of its lease are those of one at work.
    lost = {**json.loads(beat), "pid_started": 1.0}
    store.put(Layout(DAYS[4]).heartbeat(lease.epoch), json.dumps(lost).encode())


def test_the_states_of_a_week_are_right_with_two_requests_per_partition(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
):
    make_week(any_store)
    read, requests = Store.read_many, Counter[str]()

    def counted(store: Store, paths: list[str]) -> dict[str, bytes | Exception]:
        requests.update(day for path in paths for day in DAYS if day in path)
        return read(store, paths)

    def none(store: Store, path: str) -> bytes:
        raise AssertionError(path)

    list_pages, listings = ObjectStore._page, list[str]()

    def listed(store: ObjectStore, folder: str, ask: Any) -> Page:
        listings.append(folder)
        return list_pages(store, folder, ask)

    with hold_lease(any_store, Layout(DAYS[5]), "run-9", LONG_S, lambda: BEAT):
        monkeypatch.setattr(ObjectStore, "_page", listed)
        monkeypatch.setattr(Store, "read_many", counted)
        monkeypatch.setattr(Store, "read_bytes", none)
        statuses = {status.partition: status for status in survey(any_store)}
        monkeypatch.undo()
    wanted = ["complete", "refused", "no_input", "complete", "interrupted", "running"]
    assert [statuses[day].state for day in DAYS] == wanted
    assert sorted(requests) == DAYS
    assert max(requests.values()) <= 2, requests
    assert len(listings) == (3 if any_store.is_object_store else 0), "of all partitions together"
    assert statuses[DAYS[1]].why == "gate label_drift"
    assert (statuses[DAYS[2]].why, statuses[DAYS[2]].version) == ("no folder", None)
    assert (statuses[DAYS[4]].done_pct, statuses[DAYS[5]].done_pct) == (40, 40)
    assert states(any_store)[DAYS[5]] == "unpublished"


def test_a_later_run_that_failed_before_it_had_a_lease_is_the_last_one(tmp_path: Path):
    store, day = Store(str(tmp_path)), DAYS[0]
    put_report(store, day, "20000101T000000Z-00000000", 2, "an early one")
    run(store, day)
    put_report(store, day, "20000102T000000Z-00000000", 2, "another")
    assert states(store) == {day: "complete"}
    put_report(store, day, "29990101T000000Z-00000000", 2, "wrong job")
    (now,) = survey(store)
    assert (now.state, now.why, now.version) == ("failed", "wrong job", 1)
    publish_rows(store, day)
    store.put(Layout(day).report("29990101T000000Z-00000001", "report.json"), b"[]")
    assert states(store) == {day: "complete"}, "what another version wrote says nothing"


def test_an_unreadable_partition_is_reported_and_hides_no_other(tmp_path: Path):
    store = Store(str(tmp_path))
    for day in DAYS[:2]:
        run(store, day)
    store.put(Layout(DAYS[0]).log_entry(2), b"{")
    assert states(store) == {DAYS[0]: "unreadable", DAYS[1]: "complete"}


def test_a_command_that_changes_no_version_changes_no_state(tmp_path: Path):
    store = Store(str(tmp_path))
    make_week(store)
    before = states(store)
    jobs = [{**JOB, "sink": {"uri": store.uri, "partition": day}} for day in [*DAYS[:4], "date=0"]]
    for job in jobs:
        with pytest.raises(JobError, match=r"nothing is published|no earlier version"):
            pipeline.rollback(job)
        pipeline.gc(job)
    assert states(store) == before
    publish_rows(store, DAYS[0], Rows(2))
    run(store, DAYS[0], GateRefused("no"))
    assert states(store)[DAYS[0]] == "refused"
    pipeline.rollback(jobs[0])
    assert states(store)[DAYS[0]] == "complete"


def test_gc_of_all_partitions_leaves_out_one_that_is_held(tmp_path: Path):
    store = Store(str(tmp_path))
    job = {**JOB, "sink": {"uri": store.uri, "partition": DAYS[0]}}
    for day in DAYS[:3]:
        run(store, day)
        store.put(f"{Layout(day).staging('f')}/left.parquet", b"")
    with hold_lease(store, Layout(DAYS[1]), "another", 1e6):
        done = pipeline.gc(job, all_partitions=True, grace_s=-1.0)
    assert done["partitions"] == 3
    left = [day for day in DAYS[:3] if store.list_files(Layout(day).staging("f"))]
    assert left == [DAYS[1]]


@pytest.mark.parametrize(
    ("partition", "first", "last", "is_in"),
    [
        ("date=2026-11-24", "", "", True),
        ("date=2026-11-24", "2026-11-24", "2026-11-24", True),
        ("hour=2026-11-24T05", "2026-11-24", "2026-11-24", True),
        ("hour=2026-11-24T05", "2026-11-24T06", "", False),
        ("date=2026-11-24", "2026-11-25", "", False),
        ("date=2026-11-24", "", "2026-11-23", False),
        ("number=10", "9", "11", True),
        ("country=de", "2026-11-24", "", False),
        ("all", "", "2026-11-24", False),
    ],
)
def test_bounds_are_dates_or_numbers_and_both_included(
    partition: str, first: str, last: str, is_in: bool
):
    assert is_between(partition, first, last) is is_in


def test_the_operation_chooses_shows_and_refuses(tmp_path: Path):
    store = Store(str(tmp_path))
    with pytest.raises(JobError, match="no run has worked on anything there"):
        pipeline.status(store.uri)
    make_week(store)
    seen = pipeline.status(store.uri, from_=DAYS[1][5:], to=DAYS[3][5:])
    assert [status.partition for status in seen.partitions] == DAYS[1:4]
    assert seen.count() == {"refused": 1, "no_input": 1, "complete": 1}
    assert re.search(rf"{DAYS[1]} +refused +gate label_drift", str(seen))
    (one,) = pipeline.status(store.url(f"predictions/{DAYS[3]}")).partitions
    assert one.partition == DAYS[3]
    with pytest.raises(JobError, match="soon: write a date or a number"):
        pipeline.status(store.uri, from_="soon")
    with pytest.raises(JobError, match="allow_import and every are for a job"):
        pipeline.status(store.uri, overrides={"model.top_k": 3})


def test_prometheus_gets_all_states_and_two_times_and_no_partition(tmp_path: Path):
    store = Store(str(tmp_path / 'an "output"'))
    make_week(store)
    series = samples(pipeline.status(store.uri).to_prometheus())
    states = {name: value for name, value in series.items() if "state=" in name}
    assert sum(states.values()) == 5
    assert states['pipeline_partitions{job="nightly",state="interrupted"}'] == 1
    assert states['pipeline_partitions{job="nightly",state="stale"}'] == 0
    last = series['pipeline_last_partition_timestamp_seconds{job="nightly"}']
    assert last == 1795392000, "2026-11-23, the last one that has a version"
    assert 'pipeline_last_success_timestamp_seconds{job="nightly"}' in series
    unnamed = pipeline.status(store.uri, partition=DAYS[3]).to_prometheus()
    assert 'job="an \\"output\\""' in unnamed


def test_stop_asks_the_run_that_is_there_once_and_no_later_one(tmp_path: Path):
    store, layout = Store(str(tmp_path)), Layout(DAYS[0])
    with pytest.raises(JobError, match="no run has worked on anything there"):
        pipeline.stop(store.uri)
    with hold_lease(store, layout, "run-1", LONG_S):
        for ask in (pipeline.stop, pipeline.status):
            with pytest.raises(JobError, match="no run has worked on 2026-11-24 there"):
                ask(store.uri, partition="2026-11-24")
        answer = pipeline.stop(store.uri)
        assert (answer["partition"], answer["asked"]) == (DAYS[0], "run-1")
        assert pipeline.stop(store.uri, partition=DAYS[0])["said"].startswith("it was asked before")
        assert [file.path for file in store.list_files(layout.leases)][-1] == layout.stop(1)
        with hold_lease(store, Layout(DAYS[1]), "run-2", LONG_S):
            with pytest.raises(JobError, match=f"working on {DAYS[0]}, {DAYS[1]}"):
                pipeline.stop(store.uri)
            assert pipeline.stop(store.uri, partition=DAYS[1])["asked"] == "run-2"
        with pytest.raises(PartitionBusy), hold_lease(store, layout, "run-3", LONG_S):
            pass
    assert pipeline.stop(store.uri)["asked"] is None
    with hold_lease(store, layout, "run-4", LONG_S):
        assert not store.exists(layout.stop(2))


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


def looked_at(
    *, published_s: float | None = None, by: str = "run-1", heard_s: float | None = 5, **fields: Any
) -> PartitionStatus:
    """The status of a version and a last run, by their ages."""
    manifest: Any = None
    if published_s is not None:
        manifest = SimpleNamespace(
            number=3, run_id=by, created_at="2026-11-24", num_rows=9, num_quarantined=1, carried={}
        )
    has_ended = fields.pop("has_ended", "exit_code" in fields)
    last = None
    if heard_s is not None:
        last = LastRun(Heartbeat(**{**vars(HALF), **fields}), ago(heard_s), has_ended)
    published = None if published_s is None else ago(published_s)
    return status_of("date=2026-11-24", manifest, published, last, NOW)


@pytest.mark.parametrize("published_s", [None, 100.0])
@pytest.mark.parametrize(
    ("fields", "state", "why"),
    [
        ({"phase": "listing", "rows_per_s": 9.5}, "running", "listing at 50% 9.5 rows/s on far"),
        ({"has_ended": True}, "interrupted", "at 50%, its process is gone"),
        ({"heard_s": 61}, "interrupted", "at 50%, its process is gone"),
        ({"heard_s": 59}, "running", "at 50% on far"),
        ({"ttl_s": 600.0, "heard_s": 599}, "running", "at 50% on far"),
        ({"exit_code": 6, "error": "SIGTERM"}, "interrupted", "at 50%, SIGTERM"),
        ({"exit_code": 3, "failed_gates": ["a", "b"]}, "refused", "gate a, b"),
        ({"exit_code": 3, "error": "no"}, "refused", "no"),
        ({"exit_code": 8, "error": "no folder"}, "no_input", "no folder"),
        ({"exit_code": 7, "error": "Ray is gone"}, "failed", "Ray is gone"),
        ({"exit_code": 1}, "failed", "exit 1"),
    ],
)  # fmt: skip
def test_the_state_shows_a_failed_run_whatever_is_published(
    published_s: float | None, fields: dict[str, Any], state: str, why: str
):
    status = looked_at(published_s=published_s, **fields)
    assert (status.state, status.why) == (state, why)
    assert status.version == (None if published_s is None else 3)
    assert status.done_pct == 50


@pytest.mark.parametrize(
    "how",
    [
        {"heard_s": None},
        {"exit_code": 0},
        {"exit_code": 7, "run_id": "run-1"},  # it had published when it failed
        {"has_ended": True, "run_id": "run-1"},
        {"exit_code": 3, "heard_s": 200},  # the version was published later
    ],
)
def test_a_published_partition_without_a_later_run_is_complete(how: dict[str, Any]):
    status = looked_at(published_s=100, **how)
    assert (status.state, status.why, status.version, status.rows) == ("complete", None, 3, 9)
    assert (status.quarantined, status.carried) == (1, 0)


@pytest.mark.parametrize("how", [{"heard_s": None}, {"exit_code": 0}])
def test_a_partition_without_a_version_and_without_a_failure_is_unpublished(how: dict[str, Any]):
    assert looked_at(**how).state == "unpublished"


def test_the_duration_is_unknown_if_a_time_is():
    times = {"started_at": "2026-11-24T10:00:00+00:00", "written_at": "2026-11-24T10:01:30+00:00"}
    assert looked_at(**times).duration_s == 90
    assert looked_at(**{**times, "started_at": "yesterday"}).duration_s is None
    assert looked_at().duration_s is None
