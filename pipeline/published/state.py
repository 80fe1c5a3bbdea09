"""The state of a partition by its current version and its last run, as value, table and metrics."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pipeline.commit.lease import Heartbeat
from pipeline.commit.manifest import Manifest
from pipeline.core.errors import GateRefused, InputMissing, Stopped
from pipeline.report.metric_families import instant
from pipeline.report.showing.blocks import format_duration, format_rate
from pipeline.report.showing.printed import Printed

State = Literal[
    "complete",
    "running",
    "refused",
    "interrupted",
    "failed",
    "no_input",
    "unpublished",
    "unreadable",
    "missing",
    "stale",
]
"""unpublished: a run has worked on it and published nothing. unreadable: its manifest is damaged.
Only a job tells whether a partition is missing or stale."""


@dataclass(frozen=True)
class LastRun:
    """The run that worked on a partition last."""

    heartbeat: Heartbeat
    """Its last heartbeat."""
    modified: dt.datetime | None
    """Time of that heartbeat, by the clock of the store."""
    has_ended: bool
    """It has released its lease, or its process is gone."""

    def is_live(self, now: dt.datetime) -> bool:
        """Tell whether it still runs, by its lease."""
        if self.has_ended:
            return False
        limit_s = self.heartbeat.ttl_s
        return self.modified is None or (now - self.modified).total_seconds() < limit_s


@dataclass(frozen=True)
class PartitionStatus:
    """A partition as it is now. Unknown values are None; times are ISO 8601 in UTC."""

    partition: str
    state: State
    why: str | None = None
    """One line: the failed gates, the error, the progress, or what has changed."""
    version: int | None = None
    published_at: str | None = None
    rows: int | None = None
    """Rows of the version, quarantined ones included."""
    quarantined: int | None = None
    carried: int | None = None
    """Predictions of the version that were carried from earlier ones."""
    run_id: str | None = None
    """Id of the last run, which the following fields describe."""
    job: str | None = None
    fingerprint: str | None = None
    exit_code: int | None = None
    host: str | None = None
    pid: int | None = None
    attempt: int | None = None
    started_at: str | None = None
    duration_s: float | None = None
    cost: float | None = None
    """Cost in the currency of `run.price_per_node_hour`."""
    phase: str | None = None
    done_pct: float | None = None
    rows_per_s: float | None = None
    eta_s: float | None = None
    a_run_would: str | None = None
    """What a run of a job would do; None without a job."""


def status_of(
    partition: str,
    manifest: Manifest | None,
    published: dt.datetime | None,
    last: LastRun | None,
    now: dt.datetime,
) -> PartitionStatus:
    """Return the state of a partition.

    Args:
        partition: Its name.
        manifest: Its current version.
        published: Time of its publication, by the clock of the store.
        last: Its last run.
        now: The current time.
    """
    state = _state(manifest, published, last, now)
    beat = last.heartbeat if last else Heartbeat()
    done_pct = 100 * (beat.rows_done or 0) / beat.rows if beat.rows else None
    started, written = instant(beat.started_at), instant(beat.written_at)
    return PartitionStatus(
        partition=partition,
        state=state,
        why=_why(state, beat, done_pct),
        version=manifest.number if manifest else None,
        published_at=manifest.created_at if manifest else None,
        rows=manifest.num_rows if manifest else None,
        quarantined=manifest.num_quarantined if manifest else None,
        carried=_carried(manifest),
        run_id=beat.run_id or None,
        job=beat.job,
        fingerprint=beat.fingerprint,
        exit_code=beat.exit_code,
        host=beat.host or None,
        pid=beat.pid or None,
        attempt=beat.attempt,
        started_at=beat.started_at,
        duration_s=(written - started).total_seconds() if written and started else None,
        cost=beat.cost,
        phase=beat.phase if state == "running" else None,
        done_pct=done_pct,
        rows_per_s=beat.rows_per_s if state == "running" else None,
        eta_s=beat.eta_s if state == "running" else None,
    )


def _state(
    manifest: Manifest | None, published: dt.datetime | None, last: LastRun | None, now: dt.datetime
) -> State:
    if last is not None and last.is_live(now):
        return "running"
    code = last.heartbeat.exit_code if last else 0
    is_older = last is None or (published and last.modified and last.modified < published)
    if manifest and (code == 0 or is_older or (last and last.heartbeat.run_id == manifest.run_id)):
        return "complete"
    if last is None or code == 0:
        return "unpublished"
    if code == GateRefused.exit_code:
        return "refused"
    if code == InputMissing.exit_code:
        return "no_input"
    return "interrupted" if code in (None, Stopped.exit_code) else "failed"


def _why(state: State, beat: Heartbeat, done_pct: float | None) -> str | None:
    """Return in a line why a partition is not complete."""
    far = "" if done_pct is None else f"at {done_pct:.0f}%"
    match state:
        case "running":
            rate = "" if beat.rows_per_s is None else f"{format_rate(beat.rows_per_s)} rows/s"
            where = f"on {beat.host}" if beat.host else ""
            return " ".join(filter(None, [beat.phase, far, rate, where])) or None
        case "refused":
            return (
                f"gate {', '.join(map(str, beat.failed_gates))}"
                if beat.failed_gates
                else beat.error
            )
        case "interrupted":
            return ", ".join(filter(None, [far, beat.error or "its process is gone"]))
        case "failed" | "no_input":
            return beat.error or f"exit {beat.exit_code}"
    return None


def _carried(manifest: Manifest | None) -> int | None:
    if manifest is None:
        return None
    rows = manifest.carried.get("rows", 0)
    return rows if isinstance(rows, int) else None


@dataclass(frozen=True)
class Status(Printed):
    """The partitions of an output, by date or number."""

    sink: str
    partitions: tuple[PartitionStatus, ...]

    def count(self) -> dict[str, int]:
        """Return state -> number of partitions, without zeros."""
        return dict(Counter(status.state for status in self.partitions))

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        rows = [asdict(status) for status in self.partitions]
        return {"sink": self.sink, "states": self.count(), "partitions": rows}

    def shown(self) -> dict[str, Any]:
        """Return the tables for a terminal."""
        return {"states": self.count(), "partitions": [*map(_row, self.partitions)]}

    def to_prometheus(self) -> str:
        """Return the metrics as text for a file of Prometheus' node exporter.

        `absent_over_time` and the two times tell that a night did not run.
        """
        from pipeline.report.metric_families import Maker, day_of, instant
        from pipeline.report.prometheus import as_text

        made, states = Maker(self._name()), self.count()
        made.gauge(
            "partitions", "state", {state: states.get(state, 0) for state in get_args(State)}
        )
        published = filter(None, (instant(status.published_at) for status in self.partitions))
        days = filter(
            None, (day_of(status.partition) for status in self.partitions if status.version)
        )
        made.one("last_success_timestamp_seconds", max(published, default=None))
        made.one("last_partition_timestamp_seconds", max(days, default=None))
        return as_text(made.families)

    def _name(self) -> str:
        """Return the name of the job that ran last, or else of the folder of the output."""
        named = [status for status in self.partitions if status.job and status.run_id]
        last = max(named, key=lambda status: status.run_id or "", default=None)
        return (last.job if last else None) or self.sink.rstrip("/").rpartition("/")[2]


def _row(status: PartitionStatus) -> dict[str, Any]:
    since = f"since {status.started_at}" if status.state == "running" and status.started_at else ""
    left = "" if status.eta_s is None else f"{format_duration(status.eta_s, 0)} left"
    would = status.a_run_would
    if would and status.why:
        would = would.removesuffix(f": {status.why}")
    why = ", ".join(filter(None, [status.why, since, left]))
    return {
        "partition": status.partition,
        "state": status.state.replace("_", " "),
        "why": why or None,
        "version": status.version,
        "rows": status.rows,
        "quarantined": status.quarantined,
        "carried": status.carried or None,
        "took": None if status.duration_s is None else format_duration(status.duration_s, 0),
        "cost": None if status.cost is None else f"{status.cost:,.2f}",
        "attempt": status.attempt if (status.attempt or 1) > 1 else None,
        "a_run_would": would,
    }
