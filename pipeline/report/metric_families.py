"""The metrics: the figures of a report under Prometheus' names and in its units."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pipeline.core.failures import Reason
from pipeline.report.document import Report, RunStatus
from pipeline.report.sections.outcome import Gate

MEANINGS = {
    "rows": "Rows that a stage finished in this run.",
    "bytes": "Bytes that a stage put out in this run.",
    "busy_seconds": "Seconds that all slots of a stage were busy in this run.",
    "stage_utilization_ratio": "Share of the time that the slots of a stage were busy.",
    "quarantined_rows": "Rows of the partition without a prediction.",
    "partition_rows": "Rows of the partition.",
    "slices": "Slices computed by this run, resumed from an earlier one, and left.",
    "eta_seconds": "Seconds until all rows are computed; NaN if unknown.",
    "gate_result": "1 for the result of a gate, 0 for its others.",
    "run_status": "1 for the current or final status of the last run, 0 for the others.",
    "run_start_timestamp_seconds": "When the run began.",
    "run_duration_seconds": "How long the run has taken.",
    "last_progress_timestamp_seconds": "When the run last made progress.",
    "last_success_timestamp_seconds": "When a version was last published.",
    "last_partition_timestamp_seconds": "The last date that has a version.",
    "run_info": "Model, runtime, precision, device, and version of the package.",
    "partitions": "Partitions of the output by state, as `pipeline status` shows it.",
}
"""Metric without its prefix -> its help text; all times are seconds since 1970."""
LASTING = ("pipeline_last_success_timestamp_seconds", "pipeline_last_partition_timestamp_seconds")
"""Gauges that outlive a run and never decrease."""
RUNNING = "running"
_RESULTS = get_args(Gate.model_fields["status"].annotation)


@dataclass(frozen=True)
class Family:
    """One metric: all its series."""

    name: str
    """Without `_total`, which exporters append to the name of a counter."""
    metric_type: Literal["counter", "gauge"]
    text: str
    samples: tuple[tuple[Mapping[str, str], float], ...] = ()
    """Labels and value of each series."""

    def at_least(self, floor: Mapping[str, float], labels: Mapping[str, str]) -> Family:
        """Return this metric, with its earlier value if that is higher or there is no new one."""
        if self.name not in floor:
            return self
        highest = max([floor[self.name], *(value for _, value in self.samples)])
        return replace(self, samples=((labels, highest),))


@dataclass(frozen=True)
class Outside:
    """Facts of a run that its report does not have."""

    job: str
    progress_at: float
    """When the run last made progress; seconds since 1970, as all times here."""
    eta_s: float | None = None
    """None: unknown."""
    is_running: bool = True
    published_at: str | None = None
    """When the current version was published, ISO 8601; None if unknown."""


def families_of(report: Report, outside: Outside) -> list[Family]:
    """Return every metric of a run; the label `job` is on each series."""
    did = [stage for stage in report.stages if stage.rows_out is not None]
    rows, slices, model = report.rows, report.slices, report.model
    published_at, started_at = instant(outside.published_at), instant(report.started_at)
    day = day_of(report.partition) if published_at else None
    made = Maker(outside.job)
    made.counter("rows", "stage", {stage.stage: stage.rows_out for stage in did})
    made.counter("bytes", "stage", {stage.stage: stage.bytes_out for stage in did})
    made.counter("busy_seconds", "stage", {stage.stage: stage.busy_s for stage in did})
    shares = {stage.stage: stage.utilisation_pct for stage in did}
    shares = {stage: pct / 100 for stage, pct in shares.items() if pct is not None}
    made.gauge("stage_utilization_ratio", "stage", shares)
    counted = {reason.value: report.reasons.get(reason.value, 0) for reason in Reason}
    made.counter("quarantined_rows", "reason", counted)
    states = {"predicted": rows.predicted, "quarantined": rows.quarantined, "left": rows.left}
    made.gauge("partition_rows", "state", states)
    states = {"computed": slices.computed, "resumed": slices.resumed, "left": slices.left}
    made.gauge("slices", "state", states)
    eta_s = 0.0 if rows.left == 0 else outside.eta_s
    made.one("eta_seconds", math.nan if eta_s is None else eta_s)
    results = [(gate, result) for gate in report.gates for result in _RESULTS]
    made.add(
        "gate_result",
        [({"gate": of.name, "result": result}, of.status == result) for of, result in results],
    )
    status = RUNNING if outside.is_running else report.status
    statuses = (RUNNING, *get_args(RunStatus))
    made.add("run_status", [({"status": name}, name == status) for name in statuses])
    made.one("run_start_timestamp_seconds", started_at)
    made.one("run_duration_seconds", report.wall_s)
    made.one("last_progress_timestamp_seconds", outside.progress_at)
    made.one("last_success_timestamp_seconds", published_at)
    made.one("last_partition_timestamp_seconds", day)
    info = {"model": model.name, "runtime": model.runtime, "precision": model.precision}
    info |= {"device": model.device, "version": report.versions.get("batch-inference-pipeline")}
    made.one("run_info", 1, {label: value or "" for label, value in info.items()})
    return made.families


class Maker:
    """Makes the metrics of one job; a value of None makes no series."""

    def __init__(self, job: str) -> None:
        self.families: list[Family] = []
        self._job = {"job": job}

    def counter(self, name: str, label: str, values: Mapping[str, float | None]) -> None:
        self.add(name, [({label: of}, value) for of, value in values.items()], "counter")

    def gauge(self, name: str, label: str, values: Mapping[str, float | None]) -> None:
        self.add(name, [({label: of}, value) for of, value in values.items()])

    def one(
        self, name: str, value: float | dt.datetime | None, labels: Mapping[str, str] | None = None
    ) -> None:
        number = value.timestamp() if isinstance(value, dt.datetime) else value
        self.add(name, [(labels or {}, number)])

    def add(
        self,
        name: str,
        samples: Sequence[tuple[Mapping[str, str], float | None]],
        metric_type: Literal["counter", "gauge"] = "gauge",
    ) -> None:
        known = [
            ({**self._job, **labels}, float(value))
            for labels, value in samples
            if value is not None
        ]
        self.families.append(Family(f"pipeline_{name}", metric_type, MEANINGS[name], tuple(known)))


def day_of(partition: str) -> dt.datetime | None:
    """Return the date of a partition such as `date=2026-11-24`, at midnight UTC."""
    return instant(partition.partition("=")[2])


def instant(text: str | None) -> dt.datetime | None:
    """Return the time of an ISO 8601 text, in UTC by default; None if it is not one."""
    try:
        moment = dt.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
