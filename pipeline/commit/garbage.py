"""Delete the files of an output that nothing needs any more: `pipeline gc`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from pipeline.commit.layout import Layout, first_below
from pipeline.commit.lease import latest_epoch
from pipeline.commit.manifest import kept_manifests, log_numbers
from pipeline.commit.publish import history_numbers
from pipeline.commit.shard_table import unneeded_keys
from pipeline.core.output_folders import CALIBRATED_MODELS, CONTROL, MEASURED_PROFILES, PROBES
from pipeline.process.failpoints import failpoint
from pipeline.storage.store import Store, StoredFile


def unneeded_models(store: Store, grace_s: float) -> list[StoredFile]:
    """Find calibrated models that neither a profile nor the choice of a run names.

    Args:
        grace_s: Younger models are left, as something may name them in a moment.
    """
    now = store.now()
    models = [f for f in store.list_files(CALIBRATED_MODELS) if _age_s(f, now) > grace_s]
    if not models:
        return []
    partitions = [Layout.named(name) for name in store.list_folders(CONTROL)]
    folders = [MEASURED_PROFILES, *(layout.choices for layout in partitions)]
    named = b"".join(
        store.read_bytes(file.path) for folder in folders for file in store.list_files(folder)
    )
    return [file for file in models if Path(file.path).stem.encode() not in named]


@dataclass(frozen=True)
class Garbage:
    """What `collect_garbage` has deleted."""

    num_files: int
    num_bytes: int


def collect_garbage(store: Store, layout: Layout, *, grace_s: float) -> Garbage:
    """Delete staging and leftovers of killed runs that are older than a grace period.

    A run deletes its staging once it has published. The staging of other runs is kept for `grace_s`
    after its last write, for a run that resumes it. Killed runs leave half-written files, and keys
    of versions that were never published. All runs leave plans and leases: plans that a kept
    version or staging names are kept, and so is the last lease.
    """
    now = store.now()
    folders = (layout.predictions, layout.quarantine, layout.control)
    current = max(log_numbers(store, layout), default=0)
    files = [file for folder in folders for file in store.list_leftovers(folder)]
    files += store.list_files(PROBES)
    versions = kept_manifests(store, layout, history_numbers(store, layout), current)
    files += [file for _, file in unneeded_keys(store, layout, versions)]
    staged: dict[str, list[StoredFile]] = {}
    for file in store.list_files(layout.all_staging):
        staged.setdefault(first_below(layout.all_staging, file.path), []).append(file)
    dead = {
        name: group
        for name, group in staged.items()
        if min(_age_s(file, now) for file in group) > grace_s
    }
    named = {*staged.keys() - dead.keys(), *(manifest.plan_name for manifest in versions)}
    files += [file for file in store.list_files(layout.plans) if Path(file.path).stem not in named]
    leases, last = store.list_files(layout.leases), f"{latest_epoch(store, layout):010d}"
    files += [file for file in leases if Path(file.path).stem != last]
    leftovers = [file for file in files if _age_s(file, now) > grace_s]
    for group in (*dead.values(), leftovers):
        store.delete([file.path for file in group])
        failpoint("mid_gc")
    sizes = [file.size_bytes for group in (*dead.values(), leftovers) for file in group]
    return Garbage(len(sizes), sum(sizes))


def _age_s(file: StoredFile, now: dt.datetime) -> float:
    return (now - file.modified).total_seconds() if file.modified else 0.0
