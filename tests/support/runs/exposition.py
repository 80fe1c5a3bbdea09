"""Read Prometheus' text format, and what a report must be in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def samples(text: str) -> dict[str, float]:
    """What Prometheus reads: each line is a comment, or a series and its value."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


def expected(report: Mapping[str, Any], job: str) -> dict[str, float]:
    """The series that follow from a report.json alone."""
    label = f'job="{job}"'
    series: dict[str, float | None] = {
        f"pipeline_run_duration_seconds{{{label}}}": report["wall_s"],
        f'pipeline_run_status{{{label},status="{report["status"]}"}}': 1.0,
        f'pipeline_run_status{{{label},status="running"}}': 0.0,
    }
    for state in ("predicted", "quarantined", "left"):
        series[f'pipeline_partition_rows{{{label},state="{state}"}}'] = report["rows"][state]
    for state in ("computed", "resumed", "left"):
        series[f'pipeline_slices{{{label},state="{state}"}}'] = report["slices"][state]
    for stage in report["stages"]:
        of = f'{{{label},stage="{stage["stage"]}"}}'
        series[f"pipeline_rows_total{of}"] = stage["rows_out"]
        series[f"pipeline_bytes_total{of}"] = stage["bytes_out"]
        series[f"pipeline_busy_seconds_total{of}"] = stage["busy_s"]
        if stage["utilisation_pct"] is not None:
            series[f"pipeline_stage_utilization_ratio{of}"] = stage["utilisation_pct"] / 100
    for reason, num_rows in report["reasons"].items():
        series[f'pipeline_quarantined_rows_total{{{label},reason="{reason}"}}'] = num_rows
    for gate in report["gates"]:
        name, result = gate["name"], gate["status"]
        series[f'pipeline_gate_result{{gate="{name}",{label},result="{result}"}}'] = 1.0
    return {name: value for name, value in series.items() if value is not None}
