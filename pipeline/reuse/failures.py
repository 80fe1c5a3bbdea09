"""The quarantine of a version that is retried: which rows go again, and which stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.core.schema import ERROR, ERROR_STAGE, ROW, SHARD
from pipeline.planning.plan import Plan
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.reuse.finding import Retry, Reuse

_NAMES = {ERROR: "reason", ERROR_STAGE: "stage"}
"""Columns of staged rows that a quarantine calls otherwise."""
RETRIED = tuple(reason.value for reason in Reason if reason is not Reason.DUPLICATE_ID)
"""Reasons whose rows may be retried. Of rows with one id only the first is ever predicted."""


@dataclass(frozen=True)
class Quarantined:
    """How many rows of a version failed, and which of them are retried."""

    reasons: Mapping[str, int]
    num_asked: int
    num_not_asked: int
    """With other reasons than were asked for."""
    num_duplicates: int

    def describe_others(self) -> str:
        """Say in a few words which rows stay; '' if none does."""
        others = {
            "with other reasons than --reason": self.num_not_asked,
            "for their ids": self.num_duplicates,
        }
        return ", ".join(f"{count:,} {why}" for why, count in others.items() if count)


def read_quarantined(store: Store, base: Manifest, reasons: frozenset[str]) -> Quarantined:
    """Count the failed rows of a version by their reasons."""
    tables = [read_columns(store, part.path, ["reason"]) for part in base.quarantine_parts]
    counts = Counter[str](reason for table in tables for reason in table.column(0).to_pylist())
    asked, duplicates = sum(counts[reason] for reason in reasons), counts[Reason.DUPLICATE_ID.value]
    return Quarantined(counts, asked, counts.total() - asked - duplicates, duplicates)


def check_reasons(given: Sequence[str]) -> frozenset[str]:
    """Check the reasons that a command names; none means all.

    Raises:
        JobError: There is no such reason, or its rows are never retried.
    """
    for name in given:
        if name not in RETRIED:
            is_known = name == Reason.DUPLICATE_ID.value
            why = "only the first row of an id is predicted" if is_known else "no such reason"
            raise JobError(f"--reason {name}: {why}; allowed are {', '.join(RETRIED)}")
    return frozenset(given or RETRIED)


def kept_failures(reuse: Reuse, retry: Retry, plan: Plan) -> pa.Table | None:
    """Return the failed rows of known shards that stay as they are, if there are some.

    Returns:
        As staged, with `unit` and `row` in the unit.
    """
    store, division = reuse.earlier[0].version.store, reuse.division
    tables = [read_columns(store, part.path) for part in retry.base.quarantine_parts]
    if division is None or not tables:
        return None
    rows = pa.concat_tables(tables)
    go_again = sorted(retry.reasons)
    if len(division.known) < len(reuse.earlier[0].shards):
        # The rows that have their ids may be gone with a shard; those that are not fail again.
        go_again.append(Reason.DUPLICATE_ID.value)
    kept = pc.invert(pc.is_in(rows.column("reason"), pa.array(go_again)))
    rows = rows.filter(pc.and_(kept, rows.column(ROW).is_valid()))
    root, places = Store(plan.source_root), dict[tuple[str, int], tuple[int, int]]()
    wanted = set(zip(rows.column(SHARD).to_pylist(), rows.column(ROW).to_pylist(), strict=True))
    shards = {shard for shard, _ in wanted}
    for unit in plan.units:
        first = 0
        for extent in unit.extents:
            if extent.path in division.known and (uri := root.url(extent.path)) in shards:
                failed = division.known[extent.path][1].failed
                low, high = extent.first_row, extent.first_row + extent.num_rows
                for row in failed:
                    if unit.cut is not None or low <= row < high:
                        at = row if unit.cut is not None else first + row - low
                        places[uri, row] = unit.index, at
            first += extent.num_rows
    names = zip(rows.column(SHARD).to_pylist(), rows.column(ROW).to_pylist(), strict=True)
    locations = np.array([places.get(name, (-1, -1)) for name in names], np.int64).reshape(-1, 2)
    is_here = locations[:, 0] >= 0
    rows, locations = rows.filter(pa.array(is_here)), locations[is_here]
    if not rows.num_rows:
        return None
    columns = {"unit": pa.array(locations[:, 0]), "row": pa.array(locations[:, 1])}
    for field in plan.staged_schema():
        name = _NAMES.get(field.name, field.name)
        is_there = name in rows.column_names
        values = rows.column(name) if is_there else pa.nulls(rows.num_rows, field.type)
        columns[field.name] = values
    return pa.table(columns)
