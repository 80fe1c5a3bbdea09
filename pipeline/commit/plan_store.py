"""The plan as a file: made once, then adopted by every run of its fingerprint."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason
from pipeline.planning.plan import Plan, schema_to_text
from pipeline.process.failpoints import failpoint
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.units import Unit, ctimes_of, with_ctimes
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

PLAN_VERSION = 1


def adopt_plan(store: Store, layout: Layout, plan: Plan) -> Plan:
    """Store the plan if its fingerprint is new, otherwise return the stored one (same units).

    What else is known of it is of now: plans of the same shards may come of other folders or globs.
    So are the ctimes of local shards.
    """
    path = layout.plan(plan.work)
    try:
        return _adopted(store.read_bytes(path), plan)
    except FileNotFoundError:
        token = uuid.uuid4().hex
    if store.create_once(path, plan_to_json(plan, token), token) is CreateOutcome.OTHER:
        return _adopted(store.read_bytes(path), plan)
    failpoint("planned")
    return plan


def read_plan(store: Store, layout: Layout, fingerprint: str) -> Plan:
    """Read a stored plan.

    Raises:
        InfraError: It is missing or damaged.
    """
    path = layout.plan(fingerprint)
    try:
        return plan_from_json(store.read_bytes(path), fingerprint)
    except FileNotFoundError:
        raise InfraError(f"{store.url(path)}: is missing, so the rows are unknown") from None


def _adopted(data: bytes, plan: Plan) -> Plan:
    stored = plan_from_json(data, plan.work)
    return replace(
        plan,
        units=with_ctimes(stored.units, ctimes_of(plan.units)),
        model=stored.model,
        batch_size=stored.batch_size,
        batch_tokens=stored.batch_tokens,
        created_at=stored.created_at,
    )


def plan_to_json(plan: Plan, token: str) -> bytes:
    """Serialise a plan; shards are listed once and extents refer to them by number."""
    shards: dict[tuple[str, int, str], int] = {}
    units: list[dict[str, Any]] = []
    for unit in plan.units:
        rows = [
            [
                shards.setdefault((e.path, e.size_bytes, e.version), len(shards)),
                e.first_row,
                e.num_rows,
                e.row_bytes,
                *([e.reason.value, e.message] if e.reason else []),
            ]
            for e in unit.extents
        ]
        units.append({"extents": rows, "bounds": unit.bounds})
        if unit.cut is not None:
            units[-1]["cut"] = [unit.cut.slice_rows, unit.cut.slice_bytes, unit.cut.max_rows]
    document = {
        "version": PLAN_VERSION,
        "token": token,
        "fingerprint": plan.work,
        "created_at": plan.created_at,
        "source_root": Store(plan.source_root).url(""),
        "model": plan.model,
        "batch_size": plan.batch_size,
        "batch_tokens": plan.batch_tokens,
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
    }
    return json.dumps(document).encode()


def plan_from_json(data: bytes, fingerprint: str) -> Plan:
    """Read a stored plan.

    Raises:
        InfraError: The stored bytes are not a plan of this fingerprint.
        JobError: A newer version of the pipeline wrote it.
    """
    try:
        document = json.loads(data)
        if document["version"] > PLAN_VERSION:
            raise JobError(f"plan {fingerprint[:12]}: written by a newer version; upgrade this one")
        if document["fingerprint"] != fingerprint:
            raise ValueError("another fingerprint")
        units = tuple(
            Unit(i, tuple(_extent(row, document["shards"]) for row in u["extents"]),
                 tuple(u["bounds"]), UncountedPlan(*u["cut"]) if "cut" in u else None)
            for i, u in enumerate(document["units"])
        )  # fmt: skip
        return Plan(
            fingerprint=fingerprint,
            source_root=document["source_root"],
            units=units,
            pass_through=_schema_from_text(document["pass_through"]),
            task_fields=_schema_from_text(document["task_fields"]),
            fields=_schema_from_text(document["fields"]),
            row_ids=document["row_ids"],
            model=document["model"],
            batch_size=document["batch_size"],
            batch_tokens=document["batch_tokens"],
            num_shards=document["num_shards"],
            input_bytes=document["input_bytes"],
            created_at=document["created_at"],
            fingerprint_parts=document["fingerprint_parts"],
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InfraError(f"plan {fingerprint[:12]}: the stored plan is damaged: {error}") from None


def _extent(row: list[Any], shards: list[list[Any]]) -> Extent:
    path, size_bytes, version = shards[row[0]]
    reason = Reason(row[4]) if len(row) > 4 and row[4] else None
    message = row[5] if len(row) > 5 else ""
    return Extent(path, size_bytes, version, row[1], row[2], row[3], reason, message)


def _schema_from_text(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
