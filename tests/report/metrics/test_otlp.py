"""What a collector of OpenTelemetry gets, and what becomes of one that takes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from support.runs.exposition import expected
from support.runs.report_examples import document_of, report_of
from support.servers.httpserver import WebServer, answer, ok

from pipeline.report.metrics.families import Outside, families_of
from pipeline.report.metrics.otlp import Otlp

PATH = "/v1/metrics"
FAMILIES = families_of(report_of(), Outside("nightly", 1795485600.0, is_running=False))


def series_of(body: bytes) -> dict[str, float]:
    """The data points, named as Prometheus names them."""
    found = {}
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                data = metric.sum if metric.HasField("sum") else metric.gauge
                total = "_total" if metric.HasField("sum") else ""
                for point in data.data_points:
                    labels = sorted(
                        (each.key, each.value.string_value) for each in point.attributes
                    )
                    text = ",".join(f'{key}="{value}"' for key, value in labels)
                    value: Any = getattr(point, point.WhichOneof("value"))
                    found[f"{metric.name}{total}{{{text}}}"] = float(value)
    return found


def test_a_collector_gets_the_figures_of_the_report(monkeypatch: pytest.MonkeyPatch):
    with WebServer() as collector:
        collector.scripts[PATH] = [ok(b"")]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        exporter = Otlp("nightly", lambda: FAMILIES)
        exporter.update()
        exporter.close()
    wanted = expected(document_of(), "nightly")
    found = series_of(collector.bodies[0])
    assert {series: found.get(series) for series in wanted} == wanted
    request = ExportMetricsServiceRequest.FromString(collector.bodies[0])
    attributes = request.resource_metrics[0].resource.attributes
    names = {each.key: each.value.string_value for each in attributes}
    assert names["service.name"] == "nightly"


def test_a_collector_that_refuses_is_an_error_and_nothing_is_logged_beside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with WebServer() as collector:
        collector.scripts[PATH] = [answer(400, b"no")]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", collector.url(PATH))
        exporter = Otlp("nightly", lambda: FAMILIES)
        with pytest.raises(ConnectionError, match="the collector did not take them"):
            exporter.update()
        exporter.close()
    assert caplog.records == []


def test_another_protocol_is_an_error_that_says_which_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match="PROTOCOL=grpc: only http/protobuf is there"):
        Otlp("nightly", lambda: FAMILIES)


def test_a_run_that_exports_nothing_imports_none_of_the_libraries():
    program = (
        "import sys, pipeline.dataflow, pipeline.commands.app, pipeline.operations.weeks.status;"
        "names = {'prometheus_client', 'opentelemetry', 'openlineage', 'requests'};"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.check_output([sys.executable, "-c", program], text=True, env=os.environ)
    assert done.strip() == "[]"
