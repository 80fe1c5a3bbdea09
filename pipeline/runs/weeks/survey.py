"""Read of an output how its partitions are, without its job and without Ray.

Two requests per partition beside listings: its manifest, and what its last run said (the heartbeat
of its last lease; the report, if a later run ended before it had a lease). A third one only where
an earlier version of the package wrote the heartbeat, which says nothing there.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.commit.heartbeat import Heartbeat
from pipeline.commit.layout import WHOLE_OUTPUT, Layout, partition_order
from pipeline.commit.manifest import Manifest
from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.runs.weeks.state import LastRun, PartitionStatus, status_of
from pipeline.storage.store import Store, StoredFile

_THREADS = 32
_READ_AT_ONCE = 500
"""Partitions: so many manifests are in memory."""
_ENTRY = re.compile(r"/log/\d{10}\.json$")
_LEASE = re.compile(r"/lease/\d{10}\.(hb|json)$")
_OF_RUN_ID = "%Y%m%dT%H%M%SZ"

Data = Mapping[str, bytes | Exception]
"""What was read, by path."""


def survey(store: Store, partitions: Sequence[str] | None = None) -> list[PartitionStatus]:
    """Say how partitions are, by date or number.

    Args:
        store: The output.
        partitions: Their names; None: all that runs have worked on.
    """
    reports = _newest_reports(store, partitions)
    names = partitions
    if names is None:
        names = sorted({*filter(_is_partition, store.list_folders("_control")), *reports})
    now, found = dt.datetime.now(dt.UTC), list[PartitionStatus]()
    with ThreadPoolExecutor(_THREADS) as pool:
        seen = [*pool.map(lambda name: _Seen.of(store, name, reports.get(name)), names)]
    for begin in range(0, len(seen), _READ_AT_ONCE):
        some = seen[begin : begin + _READ_AT_ONCE]
        data = store.read_many([path for each in some for path in each.to_read])
        more = [each.report.path for each in some if each.report and each.needs_report(data)]
        data |= store.read_many(more) if more else {}
        found += [each.status(store, data, now) for each in some]
    return sorted(found, key=lambda each: partition_order(each.partition))


@dataclass(frozen=True)
class _Seen:
    """What the listings of a partition show."""

    layout: Layout
    entry: StoredFile | None
    """The manifest of its current version."""
    heard: StoredFile | None
    """The heartbeat of its newest lease, or else that lease."""
    report: StoredFile | None
    """Of its newest run."""

    @classmethod
    def of(cls, store: Store, name: str, report: StoredFile | None) -> _Seen:
        layout = Layout(None if name == WHOLE_OUTPUT else name)
        log = [file for file in store.list_files(layout.log) if _ENTRY.search(file.path)]
        leases = [file for file in store.list_files(layout.leases) if _LEASE.search(file.path)]
        # By name the heartbeat of a lease comes before the lease, and after those of all others.
        heard = next((file for file in leases if _stem(file) == _stem(leases[-1])), None)
        return cls(layout, max(log, key=_path, default=None), heard, report)

    @property
    def words(self) -> StoredFile | None:
        """Return what its last run says of itself."""
        is_later = self.report and self.heard and _began_after(self.report, self.heard)
        return self.report if is_later or self.heard is None else self.heard

    @property
    def to_read(self) -> list[str]:
        """Return the paths of what has to be read of it."""
        return [file.path for file in (self.entry, self.words) if file is not None]

    def needs_report(self, data: Data) -> bool:
        """Tell whether its run has ended without saying how, in the words of an earlier version."""
        if self.heard is None or self.words is not self.heard:
            return False
        said = _heartbeat(data[self.heard.path])
        return said.released and said.exit_code is None

    def status(self, store: Store, data: Data, now: dt.datetime) -> PartitionStatus:
        """Return what follows from all that was read."""
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
        if self.heard is None:
            return None
        said = _heartbeat(data[self.heard.path])
        return LastRun(said, self.heard.modified, said.released or said.process.has_ended())


def _bytes(found: bytes | Exception) -> bytes:
    if isinstance(found, Exception):
        raise found
    return found


def _heartbeat(found: bytes | Exception) -> Heartbeat:
    return Heartbeat() if isinstance(found, Exception) else Heartbeat.from_json(found)


def _began_after(report: StoredFile, heard: StoredFile) -> bool:
    """Tell whether the run of a report began after another one was heard of for the last time."""
    stamp = PurePosixPath(report.path).parent.name.partition("-")[0]
    try:
        began = dt.datetime.strptime(stamp, _OF_RUN_ID).replace(tzinfo=dt.UTC)
    except ValueError:
        return False
    return heard.modified is not None and began > heard.modified


def _by_report(found: bytes | Exception, report: StoredFile) -> LastRun | None:
    try:
        said = json.loads(_bytes(found))
        rows = said["rows"]
        failed = [str(gate["name"]) for gate in said["gates"] if gate["status"] == "fail"]
        done = [rows.get(name) for name in ("computed", "resumed", "carried")]
    except (KeyError, TypeError, ValueError, AttributeError, OSError, PipelineError):
        return None  # another version wrote it, or it is gone
    told: dict[str, Any] = {
        **{name: said.get(name) for name in ("run_id", "exit_code", "error", "fingerprint")},
        "started_at": said.get("started_at"),
        "written_at": said.get("finished_at"),
        "rows": rows.get("total"),
        "rows_done": sum(number for number in done if isinstance(number, int)),
        "failed_gates": failed,
    }
    return LastRun(Heartbeat.from_json(json.dumps(told).encode()), report.modified, has_ended=True)


def _newest_reports(store: Store, partitions: Sequence[str] | None) -> dict[str, StoredFile]:
    """Return the report of the newest run of each partition."""
    folders = ["reports"] if partitions is None else [f"reports/{name}" for name in partitions]
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = pool.map(store.list_files, folders)
        files = [file for each in listed for file in each if file.path.endswith("/report.json")]
    newest: dict[str, StoredFile] = {}
    for file in sorted(files, key=_path):  # run ids sort by time
        name = PurePosixPath(file.path).parent.parent.name
        newest[name] = file
    return newest


def _is_partition(name: str) -> bool:
    return name == WHOLE_OUTPUT or "=" in name


def _stem(file: StoredFile) -> str:
    return PurePosixPath(file.path).stem


def _path(file: StoredFile) -> str:
    return file.path
