"""Promise: a stored report is found, checked and compared with earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.runs.published import DAY, put_report
from support.runs.report_examples import BARE, document_of

from pipeline.commit.layout import Layout
from pipeline.core.errors import InfraError, JobError
from pipeline.core.figures import StageCounters
from pipeline.report.document import Report
from pipeline.report.earlier_reports import load_report
from pipeline.storage.store import Store

NEXT_DAY = "date=2026-11-25"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def report_of(run_id: str, partition: str = DAY) -> dict:
    return document_of(BARE["published"], run_id=run_id, partition=partition)


def test_the_latest_report_is_found_by_root_partition_run_and_file(usual_store: Store):
    options = dict(usual_store.storage_options)
    for partition, run_id in ((DAY, "1-a"), (DAY, "3-b"), (NEXT_DAY, "2-c"), (None, "0-d")):
        name = Layout(partition).name
        put_report(usual_store, partition, run_id, report_of(run_id, name))
    root = usual_store.uri
    for uri, partition, run_id, expected in (
        (root, None, None, "3-b"),
        (root, NEXT_DAY, None, "2-c"),
        (root, None, "1-a", "1-a"),
        (root, DAY, "1-a", "1-a"),
        (root, "all", None, "0-d"),
        (f"{root}/predictions/{NEXT_DAY}", None, None, "2-c"),
        (f"{root}/reports/{DAY}/1-a/report.json", None, None, "1-a"),
    ):
        report = load_report(uri, partition, run_id, options)
        name = {"2-c": NEXT_DAY, "0-d": "all"}.get(expected, DAY)
        assert report == Report(**report_of(expected, name))


def test_a_missing_report_is_a_job_error(store: Store):
    with pytest.raises(JobError, match="no report of any run; it has 0 reports"):
        load_report(store.uri, None, None, {})
    put_report(store, DAY, "1-a", report_of("1-a"))
    with pytest.raises(JobError, match="no report of run 2-b; it has 1 report"):
        load_report(store.uri, None, "2-b", {})
    with pytest.raises(JobError, match=f"reports/{NEXT_DAY}: no report"):
        load_report(store.uri, NEXT_DAY, "1-a", {})
    with pytest.raises(JobError, match="there is no such report"):
        load_report(f"{store.uri}/reports/{DAY}/x/report.json", None, None, {})


def test_a_stored_report_is_compared_with_the_one_before(store: Store):
    for run_id, busy_s in (("1-a", 4.0), ("2-b", 8.0)):
        facts = BARE["published"] | dict(run_id=run_id, partition=DAY)
        counters = {"predict": StageCounters(1000, 1000, busy_s=busy_s).to_dict()}
        facts |= dict(counters=counters, rows={"computed": 1000})
        put_report(store, DAY, run_id, document_of(facts, wall_s=20.0, streaming_wall_s=10.0))
    slower = load_report(store.uri, None, None, {}).slower_than_before
    assert [(s.stage, s.change_pct, s.run_id) for s in slower] == [("predict", -50.0, "1-a")]
    assert load_report(store.uri, None, "1-a", {}).slower_than_before is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"version": 2}, JobError, "written by a newer version"),
        ({"rows": 7}, InfraError, "not a report: rows"),
        ({"version": "one"}, InfraError, "not a report"),
        (b"[]", InfraError, "not a report"),
        (b"\xff{", InfraError, "not a report"),
    ],
)
def test_a_file_that_is_not_a_report_is_refused(store: Store, data, error, message: str):
    if isinstance(data, dict):
        data = json.dumps(report_of("1-a") | data).encode()
    store.put(Layout(DAY).report("1-a", "report.json"), data)
    with pytest.raises(error, match=message):
        load_report(store.uri, None, None, {})
