"""The states of the partitions of an output, read without its job and without Ray.

There are two requests per partition: its manifest, and what its last run wrote (the last heartbeat
of its lease, or the report if a later run ended before it had a lease). In object stores that can
start a listing anywhere, one request lists many partitions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from pipeline.commit.layout import (
    REPORT,
    Layout,
    first_below,
    is_partition,
    lease_epoch,
    log_number,
    partition_order,
)
from pipeline.commit.lease import Heartbeat
from pipeline.commit.manifest import Manifest
from pipeline.core.errors import GateRefused, InputMissing, JobError, PipelineError, Stopped
from pipeline.core.output_folders import CONTROL, REPORTS
from pipeline.core.printable import clean_message
from pipeline.report.metric_families import instant
from pipeline.report.showing.blocks import format_duration, format_rate
from pipeline.report.showing.printed import Printed
from pipeline.storage.store import Store, StoredFile

_THREADS = 32
_READ_AT_ONCE = 500
"""Partitions whose manifests are in memory at once."""
_OF_RUN_ID = "%Y%m%dT%H%M%SZ"

Data = Mapping[str, bytes | Exception]
"""Path -> content, or the error of reading it."""
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


def survey(store: Store, partitions: Sequence[str] | None = None) -> list[PartitionStatus]:
    """Return the states of partitions, ordered by date or number.

    Args:
        store: The output.
        partitions: Their names; None: all that runs have worked on.
    """
    reports = _newest_reports(store, partitions)
    names = partitions
    if names is None:
        names = sorted({*filter(is_partition, store.list_folders(CONTROL)), *reports})
    now, statuses = dt.datetime.now(dt.UTC), list[PartitionStatus]()
    control = _control_files(store, names)
    listed = [_Listed.of(Layout.named(name), control[name], reports.get(name)) for name in names]
    for begin in range(0, len(listed), _READ_AT_ONCE):
        some = listed[begin : begin + _READ_AT_ONCE]
        data = store.read_many([path for partition in some for path in partition.to_read])
        statuses += [partition.status(store, data, now) for partition in some]
    return sorted(statuses, key=lambda status: partition_order(status.partition))


def survey_output(store: Store, partition: str | None = None) -> list[PartitionStatus]:
    """Return the states of all partitions of an output, or of one.

    Raises:
        JobError: No run has worked there, so the name is wrong.
    """
    rows = survey(store, None if partition is None else [partition])
    if partition is not None and rows[0].state == "unpublished" and not rows[0].run_id:
        rows = rows if _control_files(store, [partition])[partition] else []
    if not rows:
        raise JobError(f"{store.url('')}: no run has worked on {partition or 'anything'} there")
    return rows


@dataclass(frozen=True)
class _Listed:
    """The files of a partition that listings show."""

    layout: Layout
    entry: StoredFile | None
    """Manifest of its current version."""
    last_heartbeat: StoredFile | None
    """Last heartbeat of its newest lease, or that lease if there is none yet."""
    report: StoredFile | None
    """Report of its newest run."""

    @classmethod
    def of(cls, layout: Layout, files: Sequence[StoredFile], report: StoredFile | None) -> _Listed:
        log = [f for f in files if _is_in(layout.log, f) and log_number(f.path) is not None]
        leases = [f for f in files if _is_in(layout.leases, f) and lease_epoch(f.path) is not None]
        # Sorted by name, the heartbeat of a lease comes before the lease and after earlier leases.
        last = next((file for file in leases if _stem(file) == _stem(leases[-1])), None)
        return cls(layout, log[-1] if log else None, last, report)

    @property
    def last_run(self) -> StoredFile | None:
        """The file that its last run wrote last."""
        heartbeat = self.last_heartbeat
        is_later = self.report and heartbeat and _began_after(self.report, heartbeat)
        return self.report if is_later or heartbeat is None else heartbeat

    @property
    def to_read(self) -> list[str]:
        """Paths of the files to read."""
        return [file.path for file in (self.entry, self.last_run) if file is not None]

    def status(self, store: Store, data: Data, now: dt.datetime) -> PartitionStatus:
        """Return the state, by the files that were read."""
        manifest, published = None, None
        if self.entry is not None:
            try:
                bytes_ = _bytes(data[self.entry.path])
                manifest = Manifest.from_json(bytes_, store.url(self.entry.path))
            except (PipelineError, OSError) as error:
                return PartitionStatus(self.layout.name, "unreadable", clean_message(str(error)))
            published = self.entry.modified
        return status_of(self.layout.name, manifest, published, self._last_run(data), now)

    def _last_run(self, data: Data) -> LastRun | None:
        if self.report is not None and self.report.path in data:
            return _by_report(data[self.report.path], self.report)
        if self.last_heartbeat is None:
            return None
        content = data[self.last_heartbeat.path]
        heartbeat = Heartbeat() if isinstance(content, Exception) else Heartbeat.from_json(content)
        has_ended = heartbeat.released or heartbeat.process.has_ended()
        return LastRun(heartbeat, self.last_heartbeat.modified, has_ended)


def _control_files(store: Store, names: Sequence[str]) -> dict[str, list[StoredFile]]:
    """Return partition -> its log entries and leases, sorted by path."""
    layouts = [Layout.named(name) for name in names]
    folders = [folder for layout in layouts for folder in (layout.log, layout.leases)]
    files: dict[str, list[StoredFile]] = {name: [] for name in names}
    for file in store.list_small_folders(CONTROL, folders):
        files[first_below(CONTROL, file.path)].append(file)
    return files


def _bytes(content: bytes | Exception) -> bytes:
    if isinstance(content, Exception):
        raise content
    return content


def _began_after(report: StoredFile, heartbeat: StoredFile) -> bool:
    """Tell whether the run of a report began after the last heartbeat of another run."""
    stamp = PurePosixPath(report.path).parent.name.partition("-")[0]
    try:
        began = dt.datetime.strptime(stamp, _OF_RUN_ID).replace(tzinfo=dt.UTC)
    except ValueError:
        return False
    return heartbeat.modified is not None and began > heartbeat.modified


def _by_report(content: bytes | Exception, report: StoredFile) -> LastRun | None:
    try:
        document = json.loads(_bytes(content))
        rows = document["rows"]
        failed = [str(gate["name"]) for gate in document["gates"] if gate["status"] == "fail"]
        done = [rows.get(name) for name in ("computed", "resumed", "carried")]
    except (KeyError, TypeError, ValueError, AttributeError, OSError, PipelineError):
        return None  # another version of the package wrote it, or it is gone
    beat: dict[str, Any] = {
        **{name: document.get(name) for name in ("run_id", "exit_code", "error", "fingerprint")},
        "started_at": document.get("started_at"),
        "written_at": document.get("finished_at"),
        "rows": rows.get("total"),
        "rows_done": sum(number for number in done if isinstance(number, int)),
        "failed_gates": failed,
    }
    return LastRun(Heartbeat.from_json(json.dumps(beat).encode()), report.modified, has_ended=True)


def _newest_reports(store: Store, partitions: Sequence[str] | None) -> dict[str, StoredFile]:
    """Return partition -> report of its newest run."""
    folders = [REPORTS] if partitions is None else [Layout.named(n).reports for n in partitions]
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = pool.map(store.list_files, folders)
        files = [file for file in chain(*listed) if file.path.endswith(f"/{REPORT}")]
    newest: dict[str, StoredFile] = {}
    for file in sorted(files, key=lambda file: file.path):  # run ids sort by time
        name = PurePosixPath(file.path).parent.parent.name
        newest[name] = file
    return newest


def _is_in(folder: str, file: StoredFile) -> bool:
    return file.path.startswith(f"{folder}/")


def _stem(file: StoredFile) -> str:
    return PurePosixPath(file.path).stem


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
