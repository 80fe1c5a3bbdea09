"""Test that a run leaves a report with the places of its files, however it ends."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from models import LABELS, TRANSFORM
from support.runs.published import DAY, Rows, publish_rows

from pipeline.commit.layout import Layout
from pipeline.core.errors import GateRefused, InfraError, InputMissing, PipelineError, Stopped
from pipeline.dataflow import run_job
from pipeline.job.reading.loader import parse_job
from pipeline.process.terminal import show_error
from pipeline.report.document import Report
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.ending.save_report import save_report, save_trouble
from pipeline.runs.progress import Silent
from pipeline.storage.store import Store

DATE = dt.date(2026, 11, 24)


def job_in(folder: Path, source: str) -> Any:
    document = {
        "source": {"uri": str(folder / source), "format": "images"},
        "model": {"factory": "models:colours", "labels": LABELS},
        "transform": TRANSFORM,
        "sink": {"uri": str(folder / "out"), "partition": DAY},
    }
    return parse_job(document, date=DATE, origin="test")


def run_in(folder: Path) -> RunContext:
    job = job_in(folder, "in")
    record = RunRecorder("20261124T020000Z-0badcafe", DAY)
    return RunContext(job, RunOptions(), Store(job.sink.uri), Layout(DAY), record)


def test_a_published_run_names_predictions_quarantine_and_report_and_all_are_there(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path)
    manifest = publish_rows(run.store, DAY, Rows())
    run.record.already_published(manifest, run.store.url(run.layout.predictions))
    report = save_report(run, "published", None)
    lines = str(report).splitlines()
    places = dict(line.split(": ", 1) for line in lines[-3:])
    assert list(places) == ["predictions", "quarantine", "report"]
    assert all(Path(place).exists() for place in places.values())
    output = report.output
    assert list(places.values()) == [output.uri, output.quarantine, output.report]
    stored = json.loads(Path(places["report"]).with_name("report.json").read_text())
    assert Report.model_validate(stored).output.report == places["report"]


def test_only_what_there_is_has_a_place(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    manifest = publish_rows(run.store, DAY, Rows(fail_every=0))
    run.record.already_published(manifest, run.store.url(run.layout.predictions))
    report = save_report(run, "nothing_to_do", None)
    (line,) = str(report).splitlines()[1:]
    assert line == f"predictions: {tmp_path}/out/predictions/{DAY}"


@pytest.mark.parametrize("error_type", [GateRefused, Stopped, InfraError, InputMissing])
def test_a_run_that_fails_names_its_report(
    error_type: type[PipelineError],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, error = run_in(tmp_path), error_type("what happened")
    save_trouble(run, error)
    assert error.report is not None
    assert Path(error.report).is_file()
    monkeypatch.setattr(sys, "argv", ["pipeline", "run", "job.yaml", "--json"])
    assert show_error(error, error.exit_code) == error_type.exit_code
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"report: {error.report}", "error: what happened"]
    assert json.loads(shown.out)["report"] == error.report
    monkeypatch.setattr(sys, "argv", ["pipeline", "run", "job.yaml", "--quiet"])
    show_error(error, error.exit_code)
    assert capsys.readouterr().err == "error: what happened\n"


def test_an_input_that_is_not_there_yet_has_its_own_exit_code_in_a_report(tmp_path: Path) -> None:
    options = RunOptions(allow_import=("models",))
    with pytest.raises(InputMissing, match="run again when it is there") as caught:
        run_job(job_in(tmp_path, "today"), options, Silent())
    assert caught.value.report is not None
    document = json.loads(Path(caught.value.report).with_name("report.json").read_text())
    assert (document["exit_code"], document["status"]) == (8, "failed")
