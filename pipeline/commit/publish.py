"""Publish a version, new or earlier: parts first, one create-once log entry, then the rest.

The log entry is the commit. Before it, nothing that a manifest names is touched; after it,
`sync_published_folder` makes the folder agree with the manifest, which any later run can repeat.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.commit.card import write_card
from pipeline.commit.layout import Layout, first_below, part_target, renumber
from pipeline.commit.manifest import (
    Manifest,
    Part,
    current_manifest,
    current_or_unknown,
    kept_manifests,
    log_numbers,
    read_manifest,
    read_or_unknown,
    restore_entry,
)
from pipeline.commit.shard_table import unneeded_keys
from pipeline.commit.sink_table import AnyTable
from pipeline.core.errors import InfraError, JobError, PublishConflict
from pipeline.process.failpoints import failpoint
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store, StoredFile

_COPY_THREADS = 16


class PartLost(InfraError):
    """The current manifest names a part that is missing."""


def commit(
    store: Store, layout: Layout, manifest: Manifest, folder: str, version: str = ""
) -> Manifest:
    """Bring whole parts into the published folder and make them current.

    Args:
        manifest: The new manifest; its keys are written. Its part paths are relative to `folder`,
            as `predictions/<name>` and `quarantine/<name>`, with the folders of partition columns
            before the name. This function numbers them in their order.
        folder: Where the parts lie now; they are copied, not moved.
        version: The version in the new names, as for `part_name`; empty: that of the old names.

    Returns:
        The manifest that is current now: this one, or one of the same rows by another run.

    Raises:
        PublishConflict: Another run published something different under this number.
    """
    placed = replace(
        manifest,
        parts=_targets(manifest.parts, layout, version),
        quarantine_parts=_targets(manifest.quarantine_parts, layout, version),
    )
    _place(store, folder, manifest.all_parts, placed.all_parts)
    failpoint("before_log")
    path = layout.log_entry(manifest.number)
    outcome = store.create_once(path, placed.to_json(), manifest.token)
    failpoint("after_log")
    if outcome is not CreateOutcome.OTHER:
        return placed
    winner = read_manifest(store, layout, manifest.number)
    # No manifest will ever name these parts, and readers of the folder should not find them.
    store.delete([part.path for part in placed.all_parts])
    if (winner.fingerprint, winner.plan) != (manifest.fingerprint, manifest.plan):
        raise PublishConflict(
            f"partition {layout.name}: run {winner.run_id} published version {winner.number} "
            "meanwhile, from other rows, inputs or another model; this version stays unpublished"
        )
    return winner


def _targets(parts: Sequence[Part], layout: Layout, version: str) -> tuple[Part, ...]:
    return tuple(
        replace(part, path=layout.outside(renumber(part.path, index, version)))
        for index, part in enumerate(parts)
    )


def _place(store: Store, folder: str, parts: Sequence[Part], placed: Sequence[Part]) -> None:
    """Copy all parts into the published folder, or none if one fails.

    The names belong to this attempt and no log entry has them yet, so nothing else needs what is
    deleted. Parts that a killed run has placed stay until the next run.
    """
    sources, targets = ([f"{folder}/{p.path}" for p in parts], [p.path for p in placed])
    num_threads = _COPY_THREADS if store.is_object_store else 1
    try:
        # Leaving the pool waits for all copies, so that none goes on while parts are deleted.
        with ThreadPoolExecutor(num_threads) as pool:
            for _ in pool.map(store.copy, sources, targets):
                failpoint("placed_part")
    except Exception:
        with contextlib.suppress(Exception):  # the first error is raised
            store.delete(targets)
        raise


def sync_published_folder(
    store: Store,
    layout: Layout,
    manifest: Manifest,
    keep_versions: int,
    *,
    table: AnyTable | None = None,
) -> None:
    """Make the published folder agree with the current manifest; safe to repeat.

    The order decides what readers find (README.md of this folder). First, parts of attempts that
    can no longer win are deleted; no list names them. Then the table names the new parts,
    `current.json` becomes the copy of the manifest, and `_SUCCESS` is written. Last, replaced
    parts, which no list names any more, move to the history; it keeps `keep_versions` versions with
    their keys.

    A run that was suspended in this function may be late: files that it wrote for its own version,
    such as `current.json`, are then written again for the version that has become current.

    Raises:
        PartLost: The current manifest names a part that is missing.
    """
    while True:
        _settle_one(store, layout, manifest, keep_versions, table)
        latest = log_numbers(store, layout)[-1]
        if latest <= manifest.number:
            return
        manifest = read_manifest(store, layout, latest)


def _settle_one(
    store: Store,
    layout: Layout,
    manifest: Manifest,
    keep_versions: int,
    table: AnyTable | None,
) -> None:
    """Do what follows the commit of a version; each step may have been done before.

    Raises:
        PartLost: The current manifest names a part that is missing.
    """
    named = {part.path for part in manifest.all_parts}
    present = _published_files(store, layout)
    lost = named - {file.path for file in present}
    if lost and log_numbers(store, layout)[-1] > manifest.number:
        return  # replaced meanwhile: its parts are in the history
    if lost:
        raise PartLost(
            f"{store.url(sorted(lost)[0])}: named by the current manifest but missing; "
            "restore it, or run `pipeline rollback`"
        )
    strays = [file.path for file in present if file.path not in named]
    replaced = _replaced_parts(store, layout, manifest.number, strays)
    # They were made for a number that is taken: no manifest can ever name them.
    dead = [p for p in strays if p not in replaced and (part_target(p) or 0) <= manifest.number]
    if dead:
        store.delete(dead)
    if table is not None:
        table.commit(layout, manifest)
        failpoint("after_table")
    failpoint("before_current")
    _write_success(store, layout, manifest)
    if replaced:
        _retire(store, layout, replaced)
    failpoint("retired")
    kept = _trim_history(store, layout, keep_versions)
    versions = kept_manifests(store, layout, kept, manifest.number)
    unneeded = unneeded_keys(store, layout, versions)
    # Keys for later numbers belong to runs that may still win.
    store.delete([file.path for number, file in unneeded if number <= manifest.number])
    failpoint("trimmed")
    write_card(store, layout, manifest)


def _write_success(store: Store, layout: Layout, manifest: Manifest) -> None:
    """Make `current.json` the copy of a manifest, unless another one has become current meanwhile.

    A run may still be suspended between the check and the write, because local disks have no
    conditional write. That run, or the next one, then writes the right copy.
    """
    data = store.read_bytes(layout.log_entry(manifest.number))
    if _read_or_none(store, layout.current) != data:
        if log_numbers(store, layout)[-1] != manifest.number:
            return
        store.put(layout.current, data)
    failpoint("before_success")
    if _read_or_none(store, layout.success) != b"":
        store.put(layout.success, b"")


def _published_files(store: Store, layout: Layout) -> list[StoredFile]:
    """List the parts of a partition, those in folders of partition columns included."""
    return [
        file
        for folder in (layout.predictions, layout.quarantine)
        for file in store.list_files(folder)
        if part_target(file.path) is not None
        and _is_ours(file.path.removeprefix(f"{folder}/").split("/")[:-1], layout)
    ]


def _is_ours(below: Sequence[str], layout: Layout) -> bool:
    if layout.partition is None:  # folders there belong to other partitions
        return not below
    return all("=" in name for name in below)


def _replaced_parts(
    store: Store, layout: Layout, number: int, strays: Sequence[str]
) -> dict[str, int]:
    """Return the files that are parts of earlier versions -> the last version that has them."""
    owners: dict[str, int] = {}
    targets = {path: part_target(path) or 0 for path in strays}  # no version before it has them
    for entry in reversed(log_numbers(store, layout) if strays else []):
        if entry < number and any(target <= entry for target in targets.values()):
            for part in read_or_unknown(store, layout, entry).all_parts:
                if targets.pop(part.path, None) is not None:
                    owners[part.path] = entry
    return owners


def _retire(store: Store, layout: Layout, replaced: Mapping[str, int]) -> None:
    for path, version in replaced.items():
        with contextlib.suppress(FileNotFoundError):  # another run has moved it
            store.copy(path, f"{layout.history(version)}/{layout.inside(path)}")
    failpoint("kept")
    store.delete([*replaced])


def _trim_history(store: Store, layout: Layout, keep_versions: int) -> list[int]:
    """Delete all but the newest versions of the history; return the numbers of these."""
    files = _history_files(store, layout)
    for number in sorted(files, reverse=True)[keep_versions:]:
        store.delete(files.pop(number))
    return [*files]


def _read_or_none(store: Store, path: str) -> bytes | None:
    try:
        return store.read_bytes(path)
    except FileNotFoundError:
        return None


def repair(
    store: Store,
    layout: Layout,
    keep_versions: int,
    *,
    table: AnyTable | None = None,
    is_last: bool = False,
) -> Manifest | None:
    """Finish what a crashed run left after its commit; return the current manifest.

    If it is damaged and has no copy, its parts are unknown and stay as they are.

    Args:
        layout: The partition; the caller holds its lease.
        keep_versions: The job's sink.keep_versions.
        table: The table of the same parts; None if the job has none.
        is_last: Nothing is published after this call, so it also tidies up after a run that
            crashed before its commit.
    """
    restore_entry(store, layout)
    manifest = current_or_unknown(store, layout)
    if manifest is None or not manifest.is_known:
        return manifest
    present = _published_files(store, layout) if is_last else []
    if any((part_target(file.path) or 0) > manifest.number for file in present):
        manifest = _republish_as_next(store, layout, manifest)
    sync_published_folder(store, layout, manifest, keep_versions, table=table)
    return manifest


def _republish_as_next(store: Store, layout: Layout, manifest: Manifest) -> Manifest:
    """Publish the current version again under the next number; return the manifest current then.

    The parts in the way may belong to a suspended run, and must stay as long as it can commit them.
    Once its number is taken, it cannot.
    """
    again = replace(manifest, number=manifest.number + 1, token=uuid.uuid4().hex)
    path = layout.log_entry(again.number)
    if store.create_once(path, again.to_json(), again.token) is CreateOutcome.OTHER:
        return read_manifest(store, layout, again.number)
    return again


def rollback(
    store: Store,
    layout: Layout,
    run_id: str,
    *,
    keep_versions: int,
    to_number: int | None = None,
    table: AnyTable | None = None,
) -> Manifest:
    """Publish a replaced version again, as a new version.

    A publication that was interrupted after its commit is finished first.

    Args:
        layout: The partition; the caller holds its lease.
        run_id: The id of this command.
        keep_versions: The job's sink.keep_versions.
        to_number: The version; None: the newest one in the history.
        table: The table of the same parts; None if the job has none.

    Raises:
        JobError: Nothing is published, or the history does not hold that version.
        PublishConflict: Another run published meanwhile.
        InfraError: Garbage collection has deleted the version meanwhile.
    """
    try:
        current = repair(store, layout, keep_versions, table=table)
    except PartLost:  # the reason to publish another version
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
            table=table.reference if table else {},
        )
        placed = commit(store, layout, manifest, layout.history(wanted), version)
    sync_published_folder(store, layout, placed, keep_versions, table=table)
    return placed


def history_numbers(store: Store, layout: Layout) -> list[int]:
    """List the numbers of the versions in the history, ascending."""
    return sorted(_history_files(store, layout))


def _history_files(store: Store, layout: Layout) -> dict[int, list[str]]:
    """Return number of a version -> paths of its parts in the history."""
    files: dict[int, list[str]] = {}
    for file in store.list_files(layout.all_history):
        number = first_below(layout.all_history, file.path)
        if number.isascii() and number.isdigit():
            files.setdefault(int(number), []).append(file.path)
    return files


def _in_history(layout: Layout, parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(replace(part, path=layout.inside(part.path)) for part in parts)
