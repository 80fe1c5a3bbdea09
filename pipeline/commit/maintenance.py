"""What happens to a partition after it was published: roll back, and collect garbage."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from typing import Any

from pipeline.commit.garbage import unneeded_models
from pipeline.commit.layout import Layout, new_run_id, part_name
from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import Manifest, Part, current_manifest, log_numbers, read_manifest
from pipeline.commit.publish import commit, settle
from pipeline.commit.tables import table_of
from pipeline.commit.tables.base import TableFormat
from pipeline.core.errors import JobError
from pipeline.core.failpoints import reach
from pipeline.job.job import Job
from pipeline.storage.errors import listed_files
from pipeline.storage.store import PROBES, Store, StoredFile


@dataclass(frozen=True)
class Garbage:
    """What `collect_garbage` removed."""

    num_files: int
    num_bytes: int


def rollback(
    store: Store,
    layout: Layout,
    run_id: str,
    *,
    keep_versions: int,
    to_number: int | None = None,
    table: TableFormat | None = None,
) -> Manifest:
    """Publish a replaced version again, as a new version.

    Args:
        store: The sink.
        layout: The partition; the caller holds its lease.
        run_id: Of this command.
        keep_versions: The job's sink.keep_versions.
        to_number: Which version; None takes the newest one in the history.
        table: The table that names the parts, too; None if the job has none.

    Raises:
        JobError: Nothing is published, or the history does not hold that version.
        PublishConflict: Another run published meanwhile.
        InfraError: Garbage was collected meanwhile, and what was to be published with it.
    """
    current = current_manifest(store, layout)
    if current is None:
        raise JobError(f"partition {layout.name}: nothing is published, so nothing to roll back")
    kept = history_numbers(store, layout)
    if not kept:
        raise JobError(
            f"partition {layout.name}: there is no earlier version to go back to: version "
            f"{current.number} is the only one that is kept (sink.keep_versions = {keep_versions})"
        )
    wanted = kept[-1] if to_number is None else to_number
    if wanted not in kept:
        have = ", ".join(map(str, kept))
        raise JobError(
            f"partition {layout.name}: version {wanted} is not in the history; it has {have}"
        )
    old = read_manifest(store, layout, wanted)
    number = log_numbers(store, layout)[-1] + 1
    version = f"{number:06d}-{uuid.uuid4().hex[:12]}"
    folder = f"{layout.control}/staging/{old.fingerprint}/rollback-{version}"
    with listed_files():
        manifest = replace(
            old,
            number=number,
            kind="rollback",
            run_id=run_id,
            token=uuid.uuid4().hex,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            restored_from=wanted,
            parts=_restage(store, layout, old.parts, wanted, folder, version),
            quarantine_parts=_restage(store, layout, old.quarantine_parts, wanted, folder, version),
        )
        placed = commit(store, layout, manifest, folder)
    settle(store, layout, placed, keep_versions, table=table)
    return placed


def history_numbers(store: Store, layout: Layout) -> list[int]:
    """List the versions that the history holds, ascending."""
    prefix = f"{layout.control}/history/"
    files = store.list_files(prefix.rstrip("/"))
    names = {file.path.removeprefix(prefix).split("/")[0] for file in files}
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _restage(
    store: Store,
    layout: Layout,
    parts: tuple[Part, ...],
    number: int,
    folder: str,
    version: str,
) -> tuple[Part, ...]:
    restaged = []
    for index, part in enumerate(parts):
        kept = layout.inside(part.path)
        path = f"{kept.rpartition('/')[0]}/{part_name(index, version)}"
        store.copy(f"{layout.history(number)}/{kept}", f"{folder}/{path}")
        restaged.append(replace(part, path=path))
    return tuple(restaged)


def collect_garbage(store: Store, layout: Layout, *, grace_s: float) -> Garbage:
    """Delete staging, and what killed writers left half done, older than a grace period.

    A published version does not need its staging any more; an unfinished one is kept for
    `grace_s` after its last write, for the run that goes on from it.
    """
    now = store.now()
    folders = (layout.predictions, layout.quarantine, layout.control)
    leftovers = [
        (file.path, file.size_bytes)
        for folder in folders
        for file in store.list_leftovers(folder)
        if _age_s(file, now) > grace_s
    ]
    leftovers += [
        (file.path, file.size_bytes)
        for file in store.list_files(PROBES)
        if _age_s(file, now) > grace_s
    ]
    by_fingerprint: dict[str, list[tuple[str, int, float]]] = {}
    prefix = f"{layout.control}/staging/"
    for file in store.list_files(prefix.rstrip("/")):
        fingerprint = file.path.removeprefix(prefix).split("/")[0]
        by_fingerprint.setdefault(fingerprint, []).append(
            (file.path, file.size_bytes, _age_s(file, now))
        )
    dead = [
        [(path, size_bytes) for path, size_bytes, _ in files]
        for files in by_fingerprint.values()
        if min(age_s for _, _, age_s in files) > grace_s
    ]
    for group in (*dead, leftovers):
        store.delete([path for path, _ in group])
        reach("mid_gc")
    sizes = [size_bytes for group in (*dead, leftovers) for _, size_bytes in group]
    return Garbage(len(sizes), sum(sizes))


def _age_s(file: StoredFile, now: dt.datetime) -> float:
    return (now - file.modified).total_seconds() if file.modified else 0.0


def rollback_job(job: Job, to_number: int | None) -> dict[str, Any]:
    """Roll the job's partition back, holding its lease; return what is published now."""
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    run_id = new_run_id(dt.datetime.now(dt.UTC))
    with hold_lease(store, layout, run_id, job.run.lease_ttl_s):
        manifest = rollback(
            store,
            layout,
            run_id,
            keep_versions=job.sink.keep_versions,
            to_number=to_number,
            table=table_of(job.sink.table, store),
        )
    return {
        "partition": layout.name,
        "version": manifest.number,
        "restored_from": manifest.restored_from,
        "rows": manifest.num_rows,
    }


def collect_job_garbage(job: Job, *, grace_s: float) -> dict[str, Any]:
    """Collect the garbage of the job's partition, holding its lease."""
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    run_id = new_run_id(dt.datetime.now(dt.UTC))
    with hold_lease(store, layout, run_id, job.run.lease_ttl_s):
        garbage = collect_garbage(store, layout, grace_s=grace_s)
        models = unneeded_models(store, grace_s)
        store.delete([file.path for file in models])
    return {
        "partition": layout.name,
        "deleted_files": garbage.num_files + len(models),
        "deleted_bytes": garbage.num_bytes + sum(file.size_bytes for file in models),
    }
