"""Publish an earlier version of a partition again."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace

from pipeline.commit.layout import Layout, part_name
from pipeline.commit.manifest import Manifest, Part, current_manifest, log_numbers, read_manifest
from pipeline.commit.publish import commit, sync_published_folder
from pipeline.commit.shard_table import copy_keys
from pipeline.commit.tables.delta import Delta
from pipeline.core.errors import JobError
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store


def rollback(
    store: Store,
    layout: Layout,
    run_id: str,
    *,
    keep_versions: int,
    to_number: int | None = None,
    table: Delta | None = None,
) -> Manifest:
    """Publish a replaced version again, as a new version.

    Args:
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
            keys=copy_keys(store, layout, old, layout.keys(version)),
            parts=_restage(store, layout, old.parts, wanted, folder, version),
            quarantine_parts=_restage(store, layout, old.quarantine_parts, wanted, folder, version),
        )
        placed = commit(store, layout, manifest, folder)
    sync_published_folder(store, layout, placed, keep_versions, table=table)
    return placed


def history_numbers(store: Store, layout: Layout) -> list[int]:
    """List the versions that the history holds, ascending."""
    prefix = f"{layout.control}/history/"
    files = store.list_files(prefix.rstrip("/"))
    names = {file.path.removeprefix(prefix).split("/")[0] for file in files}
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _restage(
    store: Store, layout: Layout, parts: tuple[Part, ...], number: int, folder: str, version: str
) -> tuple[Part, ...]:
    restaged = []
    for index, part in enumerate(parts):
        kept = layout.inside(part.path)
        path = f"{kept.rpartition('/')[0]}/{part_name(index, version)}"
        store.copy(f"{layout.history(number)}/{kept}", f"{folder}/{path}")
        restaged.append(replace(part, path=path))
    return tuple(restaged)
