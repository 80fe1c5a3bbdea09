"""Publish a partition: final parts first, one create-once log entry, then tidy up.

The log entry is the commit. Before it, nothing that a manifest names is touched; after it,
`settle` brings the folder in line with the manifest, and any later run can do that again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.commit.card import write_card
from pipeline.commit.delta import Delta
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
from pipeline.core.errors import InfraError, JobError, PublishConflict
from pipeline.process.failpoints import failpoint
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store, StoredFile

_COPY_THREADS = 16


class PartLost(InfraError):
    """A part that the current manifest names is missing."""


def commit(
    store: Store, layout: Layout, manifest: Manifest, folder: str, version: str = ""
) -> Manifest:
    """Bring whole parts into the published folder and make them current.

    Args:
        manifest: The new manifest; its keys are written. Its part paths are relative to `folder`,
            as `predictions/<name>` and `quarantine/<name>`, with the folders of partition columns
            before the name. They are numbered here, in their order.
        folder: Where the parts lie now; they are copied, not moved.
        version: As `part_name` takes it, for parts whose names are of another version.

    Returns:
        The manifest that is current now: ours, or one of the same rows by another run.

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
    # No manifest will ever name our parts, and readers of the folder should not find them.
    store.delete([part.path for part in placed.all_parts])
    if (winner.fingerprint, winner.plan) != (manifest.fingerprint, manifest.plan):
        raise PublishConflict(
            f"partition {layout.name}: run {winner.run_id} published version {winner.number} "
            "meanwhile, from other rows, inputs or another model; ours stays unpublished"
        )
    return winner


def _targets(parts: Sequence[Part], layout: Layout, version: str) -> tuple[Part, ...]:
    return tuple(
        replace(part, path=layout.outside(renumber(part.path, index, version)))
        for index, part in enumerate(parts)
    )


def _place(store: Store, folder: str, parts: Sequence[Part], placed: Sequence[Part]) -> None:
    """Copy parts to where they will be published; all of them, or none if that fails.

    The names are of this attempt alone, and no log entry has them yet, so nothing else can need
    what is deleted. What a killed run placed stays until the next one.
    """
    sources, targets = ([f"{folder}/{p.path}" for p in parts], [p.path for p in placed])
    num_threads = _COPY_THREADS if store.is_object_store else 1
    try:
        # Before parts are deleted no copy goes on: leaving the pool waits for those that do.
        with ThreadPoolExecutor(num_threads) as pool:
            for _ in pool.map(store.copy, sources, targets):
                failpoint("placed_part")
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the one to show
            store.delete(targets)
        raise


def sync_published_folder(
    store: Store,
    layout: Layout,
    manifest: Manifest,
    keep_versions: int,
    *,
    table: Delta | None = None,
) -> None:
    """Make the published folder agree with the current manifest; safe to repeat.

    The order decides what readers find (README.md in this folder): parts of attempts that can
    no longer win are deleted, which no list names; the table names the new parts; `current.json`
    becomes the manifest's copy, and `_SUCCESS` is there; only then do replaced parts, which no list
    names any more, move to the history, of which `keep_versions` versions stay, with their keys.

    A run that was suspended in here may find that it is late: what it wrote of its own version
    (`current.json`, say) is then put right for the one that has become current.

    Raises:
        PartLost: A part that the current manifest names is missing.
    """
    while True:
        _settle_one(store, layout, manifest, keep_versions, table)
        latest = log_numbers(store, layout)[-1]
        if latest <= manifest.number:
            return
        manifest = read_manifest(store, layout, latest)


def _settle_one(
    store: Store, layout: Layout, manifest: Manifest, keep_versions: int, table: Delta | None
) -> None:
    """Finish what follows the commit of a version; each step may have been done before.

    Raises:
        PartLost: A part that the current manifest names is missing.
    """
    named = {part.path for part in manifest.all_parts}
    present = _published_files(store, layout)
    lost = named - {file.path for file in present}
    if lost and log_numbers(store, layout)[-1] > manifest.number:
        return  # replaced meanwhile, and already in the history
    if lost:
        raise PartLost(
            f"{store.url(sorted(lost)[0])}: named by the current manifest but missing; "
            "restore it, or run `pipeline rollback`"
        )
    strays = [file.path for file in present if file.path not in named]
    replaced = _replaced_parts(store, layout, manifest.number, strays)
    # Made for a number that is taken: no manifest can ever name them.
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
    # Those for later numbers are of runs that may yet win.
    store.delete([file.path for number, file in unneeded if number <= manifest.number])
    failpoint("trimmed")
    write_card(store, layout, manifest)


def _write_success(store: Store, layout: Layout, manifest: Manifest) -> None:
    """Make `current.json` the copy of a manifest, unless another one has become current meanwhile.

    Between that look and the write a run can still be suspended, and be late: a local file has no
    write that depends on what is there. The run itself then puts it right, or else the next one.
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
    """List the parts of a partition: in its folders, and in those of its partition columns."""
    return [
        file
        for folder in (layout.predictions, layout.quarantine)
        for file in store.list_files(folder)
        if part_target(file.path) is not None
        and _is_ours(file.path.removeprefix(f"{folder}/").split("/")[:-1], layout)
    ]


def _is_ours(below: Sequence[str], layout: Layout) -> bool:
    if layout.partition is None:  # the folders there are other partitions
        return not below
    return all("=" in name for name in below)


def _replaced_parts(
    store: Store, layout: Layout, number: int, strays: Sequence[str]
) -> dict[str, int]:
    """Return which of the files are parts of earlier versions, and of which the last one."""
    owners: dict[str, int] = {}
    targets = {path: part_target(path) or 0 for path in strays}  # no earlier version has them
    for entry in reversed(log_numbers(store, layout) if strays else []):
        if entry < number and any(target <= entry for target in targets.values()):
            for part in read_or_unknown(store, layout, entry).all_parts:
                if targets.pop(part.path, None) is not None:
                    owners[part.path] = entry
    return owners


def _retire(store: Store, layout: Layout, replaced: Mapping[str, int]) -> None:
    for path, version in replaced.items():
        with contextlib.suppress(FileNotFoundError):  # another run has moved it since
            store.copy(path, f"{layout.history(version)}/{layout.inside(path)}")
    failpoint("kept")
    store.delete([*replaced])


def _trim_history(store: Store, layout: Layout, keep_versions: int) -> list[int]:
    """Delete all but the newest versions; return the ones that stay."""
    kept: dict[str, list[str]] = {}
    for file in store.list_files(layout.all_history):
        version = first_below(layout.all_history, file.path)
        if version.isascii() and version.isdigit():  # not a folder of the history otherwise
            kept.setdefault(version, []).append(file.path)
    old = sorted(kept, reverse=True)[keep_versions:]
    for version in old:
        store.delete(kept.pop(version))
    return [int(version) for version in kept]


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
    table: Delta | None = None,
    is_last: bool = False,
) -> Manifest | None:
    """Finish what a crashed run left after its commit; return the current manifest.

    Of one that is damaged, and has no copy, nothing is known: its parts stay as they are.

    Args:
        layout: The partition; the caller holds its lease.
        keep_versions: The job's sink.keep_versions.
        table: The table that names the parts, too; None if the job has none.
        is_last: Nothing will be published after this, which would tidy up what a run left that
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
    """Publish what is current under the next number, as it is; return what is current then.

    The parts that are in the way may be of a run that is only suspended: as long as it can commit
    them they must not be deleted. With its number taken it cannot.
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
