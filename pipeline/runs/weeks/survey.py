"""Read of an output how its partitions are, without its job and without Ray.

Two requests per partition beside listings: its manifest, and what its last run said (the heartbeat
of its last lease; the report, if a later run ended before it had a lease). A third one only where
an earlier version of the package wrote the heartbeat, which says nothing there.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.commit.heartbeat import Heartbeat
from pipeline.commit.layout import WHOLE_OUTPUT, Layout, partition_order
from pipeline.commit.manifest import Manifest, read_manifest
from pipeline.core.errors import PipelineError
from pipeline.runs.weeks.state import LastRun, PartitionStatus, status_of
from pipeline.storage.store import Store, StoredFile

_THREADS = 32
_OF_RUN_ID = "%Y%m%dT%H%M%SZ"


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
    now = dt.datetime.now(dt.UTC)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: look_at(store, name, reports.get(name), now), names)
        return sorted(found, key=lambda each: partition_order(each.partition))


def look_at(
    store: Store, name: str, report: StoredFile | None, now: dt.datetime
) -> PartitionStatus:
    """Say how one partition is.

    Args:
        store: The output.
        name: Of the partition.
        report: That of its newest run.
        now: The time.
    """
    layout = Layout(None if name == WHOLE_OUTPUT else name)
    try:
        seen = _Seen.of(store, layout)
        manifest = read_manifest(store, layout, seen.number) if seen.number else None
        last = _last_run(store, manifest, seen, report)
    except PipelineError as error:
        return PartitionStatus(name, "unreadable", str(error))
    return status_of(name, manifest, seen.published, last, now)


@dataclass(frozen=True)
class _Seen:
    """What the listings of a partition show."""

    number: int = 0
    """Of its current version; 0: it has none."""
    published: dt.datetime | None = None
    lease: StoredFile | None = None
    """The newest lease, and what it says."""
    heartbeat: StoredFile | None = None

    @classmethod
    def of(cls, store: Store, layout: Layout) -> _Seen:
        leases = store.list_files(layout.leases)
        log = [file for file in store.list_files(layout.log) if file.path.endswith(".json")]
        lease = max((f for f in leases if f.path.endswith(".json")), key=_path, default=None)
        beat = None
        if lease is not None:
            wanted = lease.path.removesuffix(".json") + ".hb"
            beat = next((file for file in leases if file.path == wanted), None)
        if not log:
            return cls(0, None, lease, beat)
        entry = max(log, key=_path)
        return cls(int(PurePosixPath(entry.path).stem), entry.modified, lease, beat)


def _last_run(
    store: Store, manifest: Manifest | None, seen: _Seen, report: StoredFile | None
) -> LastRun | None:
    heard = seen.heartbeat or seen.lease
    if heard is None or (report is not None and _began_after(report, heard)):
        return _by_report(store, report)
    said = Heartbeat.from_json(store.read_bytes(heard.path))
    is_told = said.exit_code is not None or (manifest and manifest.run_id == said.run_id)
    if said.released and not is_told and report is not None:
        return _by_report(store, report)
    return LastRun(said, heard.modified, said.released or said.process.has_ended())


def _began_after(report: StoredFile, heard: StoredFile) -> bool:
    """Tell whether the run of a report began after another one was heard of for the last time."""
    stamp = PurePosixPath(report.path).parent.name.partition("-")[0]
    try:
        began = dt.datetime.strptime(stamp, _OF_RUN_ID).replace(tzinfo=dt.UTC)
    except ValueError:
        return False
    return heard.modified is not None and began > heard.modified


def _by_report(store: Store, report: StoredFile | None) -> LastRun | None:
    if report is None:
        return None
    try:
        said = json.loads(store.read_bytes(report.path))
        rows = said["rows"]
        failed = [str(gate["name"]) for gate in said["gates"] if gate["status"] == "fail"]
        done = [rows.get(name) for name in ("computed", "resumed", "carried")]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # another version wrote it
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


def _path(file: StoredFile) -> str:
    return file.path
