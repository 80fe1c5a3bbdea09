"""What OpenLineage gets of a run: events that its own classes take apart again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import facet_v2
from support.runs import plan_examples
from support.runs.published import DAY, Rows, publish_rows
from support.runs.report_examples import CASES, FULL, report_of
from support.servers.httpserver import WebServer, ok, silent

from pipeline.report.lineage import Lineage
from pipeline.report.metrics.exporting import Exporting, Planned
from pipeline.report.metrics.figures import RunFigures
from pipeline.report.recording.recorder import RunRecorder
from pipeline.storage.store import Store

PLAN = plan_examples.example_plan()
GATES = [
    {"name": "max_error_pct", "status": "fail", "value": 12.0, "limit": 5.0, "message": "too many"},
    {"name": "label_drift", "status": "warn", "value": 0.2, "limit": 0.1},
    {"name": "min_rows", "status": "pass"},
    {"name": "volume", "status": "off"},
]


def facet_class(url: str) -> Callable[..., Any]:
    """The client's class of a facet, by the schema that it names."""
    name = url.rpartition("/")[2]
    for _, module in inspect.getmembers(facet_v2, inspect.ismodule):
        if hasattr(module, name):
            found: Callable[..., Any] = getattr(module, name)
            return found
    raise AssertionError(f"the client has no facet {name}")


def facets_of(event: dict[str, Any]) -> dict[str, Any]:
    """Every facet of an event, made anew by its class: unknown and missing fields are errors."""
    (source,), (target,) = event["inputs"], event["outputs"]
    groups = [
        event["run"]["facets"],
        event["job"]["facets"],
        *(source.get(key, {}) for key in ("facets", "inputFacets")),
        *(target.get(key, {}) for key in ("facets", "outputFacets")),
    ]
    found = {}
    for group in groups:
        for name, fields in group.items():
            values = {key: value for key, value in fields.items() if not key.startswith("_")}
            if name not in CLIENTS_OWN:
                found[name] = facet_class(fields["_schemaURL"])(**values)
    return found


CLIENTS_OWN = {"tags"}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the client writes events to."""
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(path))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "lake")
    return path


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(**changes: Any) -> RunFigures:
    """A run over the example plan that has ended; `status` and others are those of its report."""
    record = RunRecorder("20261124T020000Z-0badcafe", DAY)
    record.planned(PLAN, plan_examples.SPEC, 0)
    figures = RunFigures(record, "nightly")
    figures.end(report_of(FULL, partition=DAY, **changes))
    return figures


def emit(figures: RunFigures) -> None:
    lineage = Lineage(figures, "s3://lake/photos/in", "/out/predictions")
    lineage.update()
    lineage.close()


def test_a_published_run_is_a_start_and_an_end_with_rows_schema_version_and_gates(
    tmp_path: Path, log: Path
):
    figures = run(gates=GATES[1:2])
    manifest = publish_rows(Store(str(tmp_path / "out")), DAY, Rows())
    figures.record.published(manifest, "/out/predictions")
    emit(figures)
    start, end = events(log)
    assert [start["eventType"], end["eventType"]] == ["START", "COMPLETE"]
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["eventTime"] == figures.record.started_at.isoformat()
    for event in (start, end):
        assert (event["job"]["namespace"], event["job"]["name"]) == ("lake", "nightly")
        (source,), (target,) = event["inputs"], event["outputs"]
        assert (source["namespace"], source["name"]) == ("s3://lake", "photos/in")
        assert (target["namespace"], target["name"]) == ("file", "/out/predictions")

    begun, ended = facets_of(start), facets_of(end)
    names = PLAN.prediction_schema().names
    for facets in (begun, ended):
        assert [field["name"] for field in facets["schema"].fields] == names
        assert facets["nominalTime"].nominalStartTime == "2026-11-24T00:00:00+00:00"
    assert begun["inputStatistics"].rowCount == PLAN.num_rows
    assert begun["inputStatistics"].fileCount == PLAN.num_shards
    assert "version" not in begun
    assert ended["version"].datasetVersion == str(manifest.number)
    assert ended["inputStatistics"].rowCount == FULL["rows"]["total"]
    assert ended["outputStatistics"].rowCount == FULL["rows"]["predicted"]
    assertions = ended["dataQualityAssertions"].assertions
    (drift,) = assertions
    assert (drift["assertion"], drift["success"], drift["severity"]) == (
        "label_drift",
        False,
        "warn",
    )
    assert (drift["actual"], drift["expected"]) == ("0.2", "0.1")


@pytest.mark.parametrize(
    ("status", "state"), [("refused", "FAIL"), ("failed", "FAIL"), ("stopped", "ABORT")]
)
def test_a_run_that_does_not_publish_says_why_and_which_gate(log: Path, status: str, state: str):
    error = CASES[status]["error"]
    emit(run(status=status, error=error, gates=GATES, output={}))
    *_, end = events(log)
    facets = facets_of(end)
    assert end["eventType"] == state
    assert facets["errorMessage"].message == error
    assert "outputStatistics" not in facets
    assertions = facets["dataQualityAssertions"].assertions
    assert [(each["name"], each["success"], each["severity"]) for each in assertions] == [
        ("max_error_pct", False, "error"),
        ("label_drift", False, "warn"),
        ("min_rows", True, "warn"),
    ]


def test_a_run_that_ends_before_its_plan_is_known_has_a_start_too(log: Path):
    figures = RunFigures(RunRecorder("20261124T020000Z-0badcafe", "all"), "nightly")
    emit(figures)
    assert not log.exists()
    figures.end(report_of(CASES["failed"]))
    emit(figures)
    assert [each["eventType"] for each in events(log)] == ["START", "FAIL"]
    assert all(facets_of(each) for each in events(log))


def test_events_go_over_http_and_a_server_that_hangs_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with WebServer() as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.url())
        server.scripts["/api/v1/lineage"] = [ok(b"{}")]
        emit(run())
        assert [json.loads(body)["eventType"] for body in server.bodies] == ["START", "COMPLETE"]
        server.scripts["/api/v1/lineage"] = [silent]
        figures = run()
        make = Planned(
            "OpenLineage", lambda: Lineage(figures, "/in", "/out"), every_s=60, ends_within_s=0.2
        )
        caplog.clear()
        Exporting([make]).end(has_result=True)
    (warning,) = [each for each in caplog.records if each.levelname != "DEBUG"]
    assert warning.getMessage() == "OpenLineage: no end within 0.2 s; the run goes on without"
