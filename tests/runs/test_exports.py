"""Test that the metrics of a run equal its report, and that a failed export harms no run."""

from __future__ import annotations

import datetime as dt
import json
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import LABELS, TRANSFORM
from support.runs.published import DAY, Rows, publish_rows
from support.runs.report_examples import expected, samples
from support.servers.ports import free_ports

from pipeline.commit.layout import Layout
from pipeline.core.errors import InfraError, PartitionBusy
from pipeline.job.reading.loader import parse_job
from pipeline.published.verify import verify_output
from pipeline.report.document import Report
from pipeline.report.prometheus import Port
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.ending import lost_run
from pipeline.runs.ending.save_report import save_report, save_trouble
from pipeline.runs.exports import RunFigures
from pipeline.storage.store import Store

LAST_SUCCESS = 'pipeline_last_success_timestamp_seconds{job="nightly"}'
LAST_PARTITION = 'pipeline_last_partition_timestamp_seconds{job="nightly"}'
FAILED = 'pipeline_run_status{job="nightly",status="failed"}'
DATE = dt.date(2026, 11, 24)
LATER_S = 4102444800.0
BEFORE = f"{LAST_SUCCESS} 1e9\n{LAST_SUCCESS.replace('nightly', 'other')} 2e9\nup 1\n"


def run_with(folder: Path, **metrics: Any) -> RunContext:
    document = {
        "source": {"uri": str(folder / "in"), "format": "images"},
        "model": {"factory": "models:colours", "labels": LABELS},
        "transform": TRANSFORM,
        "sink": {"uri": str(folder / "out"), "partition": DAY},
        "metrics": metrics,
    }
    job = parse_job(document, date=DATE, origin="test")
    record = RunRecorder("20261124T020000Z-0badcafe", DAY)
    options = RunOptions(job_name="nightly")
    return RunContext(job, options, Store(job.sink.uri), Layout(DAY), record)


def publish(run: RunContext) -> Report:
    manifest = publish_rows(run.store, DAY, Rows())
    run.record.already_published(manifest, run.store.url(run.layout.predictions))
    return save_report(run, "published", None)


def test_a_port_answers_with_the_figures_of_the_moment(tmp_path: Path):
    run, (port,) = run_with(tmp_path), free_ports(1)
    figures = RunFigures(run.record, "nightly")
    exporter = Port("127.0.0.1", port, figures.families)
    try:
        figures.end(report := publish(run))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            series = samples(answer.read().decode())
    finally:
        exporter.close()
    wanted = expected(report.model_dump(mode="json"), "nightly")
    assert {name: series.get(name) for name in wanted} == wanted
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


def test_a_run_that_fails_says_so_and_leaves_the_time_of_the_last_success(tmp_path: Path):
    textfile = tmp_path / "nightly.prom"
    textfile.write_text(BEFORE)
    save_trouble(run_with(tmp_path, textfile=str(textfile)), InfraError("the store is down"))
    series = samples(text := textfile.read_text())
    assert (series[FAILED], series[LAST_SUCCESS]) == (1.0, 1e9)
    assert LAST_PARTITION not in series
    assert 'job="other"' not in text


def test_the_times_of_a_run_of_another_date_that_ended_meanwhile_stay(tmp_path: Path):
    textfile = tmp_path / "nightly.prom"
    run = run_with(tmp_path, textfile=str(textfile))
    with run.exports.during(run):
        textfile.write_text(f"{LAST_PARTITION} {LATER_S}\n")
        publish(run)
    assert samples(textfile.read_text())[LAST_PARTITION] == LATER_S


def test_the_parent_of_a_killed_process_exports_how_its_run_ended(tmp_path: Path):
    textfile = tmp_path / "nightly.prom"
    run = run_with(tmp_path, textfile=str(textfile), port=free_ports(1)[0])
    lost_run.end(json.loads(json.dumps(lost_run.describe(run))), "its process was killed")
    assert samples(textfile.read_text())[FAILED] == 1


def test_of_a_process_that_was_killed_after_its_commit_it_says_what_is_published(tmp_path: Path):
    run = run_with(tmp_path)
    run = replace(run, record=RunRecorder(publish_rows(run.store, DAY, Rows()).run_id, DAY))
    error = lost_run.end(json.loads(json.dumps(lost_run.describe(run))), "killed")
    assert str(error) == "killed: version 1 is published; run again to complete the publication"
    assert run.store.list_files("reports") == []
    assert verify_output(run.store.uri, DAY, {})["status"] == "ok"


def test_a_run_that_finds_another_at_work_exports_nothing(tmp_path: Path):
    textfile = tmp_path / "nightly.prom"
    run = run_with(tmp_path, textfile=str(textfile))
    with run.exports.during(run):
        save_trouble(run, PartitionBusy("another run holds it"))
    assert not textfile.exists()


def test_a_folder_that_cannot_be_written_and_a_port_that_is_taken_are_a_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = run_with(tmp_path, textfile="/proc/nightly.prom", port=port)
        with run.exports.during(run):
            assert publish(run).status == "published"
    warned = sorted(record.getMessage() for record in caplog.records)
    assert len(warned) == 2
    for place, text in zip((f"at 127.0.0.1:{port}", "to /proc/nightly.prom"), warned, strict=True):
        assert text.startswith(f"metrics {place}: ")
        assert text.endswith("the run goes on without")


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("textfile", "nightly.txt", "names end in .prom"),
        ("textfile", "s3://bucket/x.prom", "reads only local files"),
        ("port", 0, "greater than or equal to 1"),
    ],
)
def test_an_impossible_place_for_metrics_is_refused(
    tmp_path: Path, field: str, value: Any, why: str
):
    with pytest.raises(Exception, match=why) as caught:
        run_with(tmp_path, **{field: value})
    assert "secret" not in str(caught.value)
