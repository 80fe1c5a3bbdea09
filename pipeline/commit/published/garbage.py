"""Find and delete what an output no longer needs."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.published.rollback import history_numbers
from pipeline.commit.shard_table import unneeded_keys
from pipeline.process.failpoints import failpoint
from pipeline.storage.store import PROBES, Store, StoredFile


def unneeded_models(store: Store, grace_s: float) -> list[StoredFile]:
    """Find calibrated models that nothing names: no profile, and no run's choice.

    Args:
        grace_s: Younger ones may be named in a moment.
    """
    now = store.now()
    models = [
        file
        for file in store.list_files("_control/models")
        if file.modified and (now - file.modified).total_seconds() > grace_s
    ]
    if not models:
        return []
    folders = ["_control/profiles"]
    folders += [f"_control/{name}/choice" for name in store.list_folders("_control")]
    named = b"".join(
        store.read_bytes(file.path) for folder in folders for file in store.list_files(folder)
    )
    return [file for file in models if Path(file.path).stem.encode() not in named]


@dataclass(frozen=True)
class Garbage:
    """What `collect_garbage` removed."""

    num_files: int
    num_bytes: int


def collect_garbage(store: Store, layout: Layout, *, grace_s: float) -> Garbage:
    """Delete staging, and what killed runs left, older than a grace period.

    A run deletes its staging once it has published. That of one that has not is kept for `grace_s`
    after its last write, for the run that goes on from it. Killed runs leave files half written,
    and keys of versions that never came about.
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
    current, kept = current_manifest(store, layout), history_numbers(store, layout)
    keys = [file for _, file in unneeded_keys(store, layout, current, kept)]
    leftovers += [(file.path, file.size_bytes) for file in keys if _age_s(file, now) > grace_s]
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
        failpoint("mid_gc")
    sizes = [size_bytes for group in (*dead, leftovers) for _, size_bytes in group]
    return Garbage(len(sizes), sum(sizes))


def _age_s(file: StoredFile, now: dt.datetime) -> float:
    return (now - file.modified).total_seconds() if file.modified else 0.0
