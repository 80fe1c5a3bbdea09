"""Read the states of the partitions of an output, without its job and without Ray.

There are two requests per partition: its manifest, and what its last run wrote (the last heartbeat
of its lease, or the report if a later run ended before it had a lease). In object stores that can
start a listing anywhere, one request lists many partitions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

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
from pipeline.core.errors import JobError, PipelineError
from pipeline.core.output_folders import CONTROL, REPORTS
from pipeline.core.printable import clean_message
from pipeline.published.state import LastRun, PartitionStatus, status_of
from pipeline.storage.store import Store, StoredFile

_THREADS = 32
_READ_AT_ONCE = 500
"""Partitions whose manifests are in memory at once."""
_OF_RUN_ID = "%Y%m%dT%H%M%SZ"

Data = Mapping[str, bytes | Exception]
"""Path -> content, or the error of reading it."""


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
    for file in sorted(files, key=_path):  # run ids sort by time
        name = PurePosixPath(file.path).parent.parent.name
        newest[name] = file
    return newest


def _is_in(folder: str, file: StoredFile) -> bool:
    return file.path.startswith(f"{folder}/")


def _stem(file: StoredFile) -> str:
    return PurePosixPath(file.path).stem


def _path(file: StoredFile) -> str:
    return file.path
