"""Publish an earlier version of a partition again."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import replace

from pipeline.commit.layout import Layout, first_below
from pipeline.commit.manifest import Manifest, Part, current_manifest, log_numbers, read_manifest
from pipeline.commit.publish import PartLost, commit, repair, sync_published_folder
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

    A publication that was interrupted after its commit is finished before that.

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
    try:
        current = repair(store, layout, keep_versions, table=table)
    except PartLost:  # which is what another version is published instead of
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
    with listed_files():
        manifest = replace(
            old,
            number=number,
            kind="rollback",
            run_id=run_id,
            token=uuid.uuid4().hex,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            restored_from=wanted,
            parts=_in_history(layout, old.parts),
            quarantine_parts=_in_history(layout, old.quarantine_parts),
        )
        placed = commit(store, layout, manifest, layout.history(wanted), version)
    sync_published_folder(store, layout, placed, keep_versions, table=table)
    return placed


def history_numbers(store: Store, layout: Layout) -> list[int]:
    """List the versions that the history holds, ascending."""
    folder = layout.all_history
    names = {first_below(folder, file.path) for file in store.list_files(folder)}
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _in_history(layout: Layout, parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(replace(part, path=layout.inside(part.path)) for part in parts)
