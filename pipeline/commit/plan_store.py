"""Store a plan under the digest of its content: the listed shards, their rows, and the slices.

A run uses the plan that it makes itself. The stored plan tells later readers which rows there were,
and slices are staged under its name; another listing has another name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason
from pipeline.core.ranges import Ranges
from pipeline.planning.plan import Plan, schema_to_text
from pipeline.process.failpoints import failpoint
from pipeline.sources.units import Extent, UncountedPlan, Unit
from pipeline.storage.store import Store

log = logging.getLogger(__name__)
PLAN_VERSION = 3
"""Plans of version 1 were named by their fingerprint; those of tables are of version 3."""
_IN_TABLE = 7
"""Entries of an extent in a table; others have 4 or 5, and had 6 in version 1."""


def adopt_plan(store: Store, layout: Layout, plan: Plan, retry: Sequence[Any] = ()) -> Plan:
    """Store a plan and return it with its name; a stored one is rewritten, so that `gc` keeps it.

    Args:
        plan: The plan of a run.
        retry: What tells the plan of a retry from that of the run whose rows it retries.
    """
    data = plan_to_json(plan, retry)
    plan = replace(plan, stored_as=_digest(data))
    path = layout.plan(plan.work)
    try:
        if store.read_bytes(path) != data:
            log.warning("%s: is damaged; written again", store.url(path))
    except FileNotFoundError:
        pass
    store.put(path, data)
    failpoint("planned")
    return plan


def named(plan: Plan) -> Plan:
    """Return a plan with the name under which a run would store it."""
    return replace(plan, stored_as=_digest(plan_to_json(plan)))


def read_plan(store: Store, layout: Layout, name: str) -> Plan:
    """Read a stored plan.

    Raises:
        InfraError: It is missing or damaged.
    """
    path = layout.plan(name)
    try:
        return plan_from_json(store.read_bytes(path), name)
    except FileNotFoundError:
        raise InfraError(f"{store.url(path)}: missing, so the rows are unknown") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plan_to_json(plan: Plan, retry: Sequence[Any] = ()) -> bytes:
    """Serialise a plan; shards are listed once, and extents refer to them by number.

    Equal plans give equal bytes. The batch size and texts of errors are not stored: they may differ
    in the next run and decide no row.
    """
    shards: dict[tuple[str, int, str, int], int] = {}
    units: list[dict[str, Any]] = []
    for unit in plan.units:
        rows = [
            [
                shards.setdefault((e.path, e.size_bytes, e.version, e.ctime_ns), len(shards)),
                e.first_row,
                e.num_rows,
                e.row_bytes,
                *_rest_of(e),
            ]
            for e in unit.extents
        ]
        units.append({"extents": rows, "bounds": unit.bounds})
        if unit.cut is not None:
            units[-1]["cut"] = [unit.cut.slice_rows, unit.cut.slice_bytes, unit.cut.max_rows]
    document = {
        "version": PLAN_VERSION if plan.has_gaps else 2,
        "fingerprint": plan.fingerprint,
        "retry": list(retry),
        "source_root": Store(plan.source_root).uri,
        "model": plan.model,
        "num_rows": plan.num_rows,
        "num_shards": plan.num_shards,
        "input_bytes": plan.input_bytes,
        "pass_through": schema_to_text(plan.pass_through),
        "task_fields": schema_to_text(plan.task_fields),
        "fields": schema_to_text(plan.fields),
        "row_ids": plan.row_ids,
        "fingerprint_parts": plan.fingerprint_parts,
        "shards": list(shards),
        "units": units,
        **({} if plan.table is None else {"table": schema_to_text(plan.table)}),
        **({"where": plan.where} if plan.where else {}),
    }
    return json.dumps(document, sort_keys=True).encode()


def _rest_of(extent: Extent) -> list[Any]:
    """Return what only some extents have: a reason; chosen rows; and in tables their values."""
    reason = extent.reason and extent.reason.value
    if extent.only is None and not extent.given:
        return [reason] if reason else []
    return [reason, extent.only and extent.only.bounds, extent.given]


def plan_from_json(data: bytes, name: str) -> Plan:
    """Read a stored plan.

    Raises:
        InfraError: The bytes are not the plan of this name, or its slices have gaps.
        JobError: A newer version of the pipeline wrote it.
    """
    try:
        document = json.loads(data)
        if document["version"] > PLAN_VERSION:
            raise JobError(f"plan {name[:12]}: written by a newer version; upgrade this one")
        if name != (document["fingerprint"] if document["version"] == 1 else _digest(data)):
            raise ValueError("its name is not its digest")
        units = tuple(
            Unit(i, tuple(_extent(row, document["shards"]) for row in u["extents"]),
                 tuple(u["bounds"]), UncountedPlan(*u["cut"]) if "cut" in u else None)
            for i, u in enumerate(document["units"])
        )  # fmt: skip
        _require_all_rows(units, has_gaps="table" in document or "where" in document)
        return Plan(
            fingerprint=document["fingerprint"],
            source_root=document["source_root"],
            units=units,
            pass_through=_schema_from_text(document["pass_through"]),
            task_fields=_schema_from_text(document["task_fields"]),
            fields=_schema_from_text(document["fields"]),
            row_ids=document["row_ids"],
            model=document["model"],
            num_shards=document["num_shards"],
            input_bytes=document["input_bytes"],
            fingerprint_parts=document["fingerprint_parts"],
            stored_as=name,
            where=document.get("where", ""),
            table=_schema_from_text(document["table"]) if "table" in document else None,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InfraError(f"plan {name[:12]}: the stored plan is damaged: {error}") from None


def _require_all_rows(units: Iterable[Unit], *, has_gaps: bool) -> None:
    """Check that slices and extents have neither gaps nor overlaps.

    Args:
        has_gaps: Some rows of the shards may be no input.

    Raises:
        ValueError: They have.
    """
    ends: dict[str, int] = {}
    for unit in units:
        for extent in unit.extents:
            gap = extent.first_row - ends.get(extent.path, 0)
            if gap < 0 or (gap and not has_gaps):
                raise ValueError(f"the rows of {extent.path} do not follow each other")
            ends[extent.path] = extent.end_row
        num_rows = sum(extent.num_rows for extent in unit.extents)
        is_cut = all(start < end for start, end in pairwise(unit.bounds))
        if unit.cut is None and not (is_cut and (unit.bounds[0], unit.bounds[-1]) == (0, num_rows)):
            raise ValueError(f"the slices of unit {unit.index} are not its {num_rows} rows")


def _extent(row: list[Any], shards: list[list[Any]]) -> Extent:
    """Return an extent without the ctime of its shard, which belongs to the listing of its run."""
    path, size_bytes, version = shards[row[0]][:3]
    reason = Reason(row[4]) if len(row) > 4 and row[4] else None
    extent = Extent(path, size_bytes, version, row[1], row[2], row[3], reason)
    if len(row) < _IN_TABLE:
        return extent
    only, given = row[5:]
    return replace(extent, only=only and Ranges(tuple(only)), given=tuple(given))


def _schema_from_text(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
