"""Prove what a manifest says besides rows and bytes, by what else tells it.

A manifest and its copy can be edited together. The name of the log entry, the metadata of the
parts, the rows of the quarantine and the report of the run say the same things once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import (
    Manifest,
    Part,
    log_numbers,
    read_manifest,
    unexpected_files_in_log,
)
from pipeline.commit.parts.part_reader import read_columns
from pipeline.commit.parts.part_writer import META_PREFIX
from pipeline.commit.published.part_audit import FoundPart
from pipeline.core.failures import Reason
from pipeline.core.schema import ROW_ID
from pipeline.planning.plan import Plan
from pipeline.storage.store import Store

_OF_MODEL = {"model": "name", "weights_sha256": "weights_sha256", "precision": "precision",
             "runtime": "runtime"}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    status: Literal["pass", "fail", "skipped"]
    message: str


def verdict(name: str, problems: Sequence[str], fine: str) -> Check:
    """Return a check that fails if there are problems."""
    if not problems:
        return Check(name, "pass", fine)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Check(name, "fail", problems[0] + more)


def check_log(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check that the log is 1, 2, 3, ... and that its last entry is what its name says."""
    numbers = log_numbers(store, layout)
    problems = []
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"{layout.log}: the entries are not 1 to {len(numbers)}")
    if numbers and manifest.number != numbers[-1]:
        problems.append(f"{layout.log_entry(numbers[-1])} says that it is {manifest.number}")
    if manifest.partition != layout.name:
        problems.append(f"the manifest says partition {manifest.partition}, not {layout.name}")
    problems += [f"{path} is no log entry" for path in unexpected_files_in_log(store, layout)]
    return verdict("log", problems, f"entries 1 to {len(numbers)}, of {layout.name}")


def check_receipt(
    store: Store, every: Sequence[FoundPart], manifest: Manifest, plan: Plan | None
) -> Check:
    """Compare the model, the gates and the unreadable shards with what else tells them."""
    problems = [
        *_models(every, manifest),
        *_gates(store, manifest),
        *_unreadable(store, manifest, plan),
    ]
    return verdict("receipt", problems, "model, gates and unreadable shards as told elsewhere")


def _models(every: Sequence[FoundPart], manifest: Manifest) -> Iterator[str]:
    """Compare the model with that of each part; parts that were taken over say what made them."""
    for found in every:
        metadata: Mapping[bytes, bytes] = (found.schema.metadata if found.schema else None) or {}
        made_for = metadata.get(f"{META_PREFIX}fingerprint".encode(), b"").decode()
        if manifest.carried and made_for != manifest.fingerprint:
            continue
        for name, key in _OF_MODEL.items():
            inside = metadata.get(f"{META_PREFIX}{name}".encode())
            said = str(manifest.model.get(key))
            if inside is not None and inside.decode() != said:
                yield f"{found.part.path} has {name} {inside.decode()}, the manifest says {said}"


def _gates(store: Store, manifest: Manifest) -> Iterator[str]:
    """Compare with the report of the run, or with the version that was restored."""
    layout = Layout(None if manifest.partition == "all" else manifest.partition)
    if manifest.restored_from is not None:
        try:
            gates: Any = list(read_manifest(store, layout, manifest.restored_from).gates)
        except FileNotFoundError:
            return
        where = f"version {manifest.restored_from}"
    else:
        where = layout.report(manifest.run_id, "report.json")
        try:
            gates = json.loads(store.read_bytes(where))["gates"]
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return  # a run that was killed after its commit has left none
    if _plain(gates) != _plain(manifest.gates):
        yield f"the gates of the manifest are not those of {where}"


def _plain(gates: Any) -> list[Any]:
    """Return name, status, value and limit of each."""
    return [[gate.get(key) for key in ("name", "status", "value", "limit")] for gate in gates]


def _unreadable(store: Store, manifest: Manifest, plan: Plan | None) -> Iterator[str]:
    """Count shards that could not be read: each has one row of that reason in quarantine."""
    if plan is None:
        return
    whole = [extent.path for unit in plan.units for extent in unit.extents if extent.is_whole_shard]
    ids = None if plan.counts_by_reading else pa.array(whole, pa.string())
    shards = sum(_count(store, part, ids) for part in manifest.quarantine_parts)
    said = manifest.num_unreadable_shards
    if said != shards:
        yield f"{shards} unreadable shards are in quarantine, the manifest says {said}"


def _count(store: Store, part: Part, ids: pa.Array | None) -> int:
    """Count the rows that stand for a shard; if reading counts rows, each has one."""
    rows = read_columns(store, part.path, [ROW_ID, "reason"])
    is_one = pc.equal(rows.column("reason"), Reason.UNREADABLE_SHARD.value)
    if ids is not None:
        is_one = pc.and_(is_one, pc.is_in(rows.column(ROW_ID), ids))
    return int(pc.sum(is_one).as_py() or 0)


def linked_files(store: Store, layout: Layout) -> list[str]:
    """List links in the published folders of a local sink: listings skip them, readers do not."""
    if store.is_object_store:
        return []
    root = Path(store.url(""))
    return sorted(
        str(Path(folder, name).relative_to(root))
        for top in (layout.predictions, layout.quarantine)
        for folder, folders, names in os.walk(root / top)
        for name in (*folders, *names)
        if Path(folder, name).is_symlink() and not name.startswith((".", "_"))
    )
