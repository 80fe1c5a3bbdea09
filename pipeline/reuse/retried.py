"""The quarantine of a version that is retried: rows to predict again, and rows that stay failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.part_file import read_columns
from pipeline.core.arrays import Numbers, as_array
from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.core.ranges import EMPTY, Ranges
from pipeline.core.schema import ERROR, ERROR_STAGE, ROW, SHARD
from pipeline.planning.plan import Plan
from pipeline.reuse.dividing import Division
from pipeline.storage.store import Store

_NAMES = {ERROR: "reason", ERROR_STAGE: "stage"}
"""Columns of staged rows -> their names in a quarantine."""
RETRIED = tuple(reason.value for reason in Reason if reason is not Reason.DUPLICATE_ID)
"""Reasons whose rows may be retried. Only the first of the rows with one id is ever predicted."""


@dataclass(frozen=True)
class Quarantined:
    """The failed rows of a version, counted by reason and by whether they are retried."""

    reasons: Mapping[str, int]
    num_asked: int
    num_not_asked: int
    """Rows with reasons that were not asked for."""
    num_duplicates: int

    def describe_others(self) -> str:
        """Describe the rows that stay in a few words; empty if there are none."""
        others = {
            "with other reasons than --reason": self.num_not_asked,
            "for their ids": self.num_duplicates,
        }
        return ", ".join(f"{count:,} {why}" for why, count in others.items() if count)


@dataclass(frozen=True)
class Retry:
    """The version that is retried, the newest one of its partition, and which of its rows."""

    base: Manifest
    reasons: frozenset[str]
    """The reasons of the failed rows to predict again; rows with other reasons stay as they are."""


def read_quarantined(store: Store, base: Manifest, reasons: frozenset[str]) -> Quarantined:
    """Count the failed rows of a version by their reasons."""
    tables = [read_columns(store, part.path, ["reason"]) for part in base.quarantine_parts]
    counts = Counter[str](reason for table in tables for reason in table.column(0).to_pylist())
    asked, duplicates = sum(counts[reason] for reason in reasons), counts[Reason.DUPLICATE_ID.value]
    return Quarantined(counts, asked, counts.total() - asked - duplicates, duplicates)


def check_reasons(given: Sequence[str]) -> frozenset[str]:
    """Return the reasons that a command names, or all if it names none.

    Raises:
        JobError: There is no such reason, or its rows are never retried.
    """
    for name in given:
        if name not in RETRIED:
            is_known = name == Reason.DUPLICATE_ID.value
            why = "only the first row of an id is predicted" if is_known else "no such reason"
            raise JobError(f"--reason {name}: {why}; allowed are {', '.join(RETRIED)}")
    return frozenset(given or RETRIED)


def kept_failures(
    store: Store, retry: Retry, division: Division, plan: Plan, *, lost_shards: bool
) -> pa.Table | None:
    """Return the failed rows of known shards that stay as they are, if there are some.

    Args:
        store: The output.
        retry: The version that is retried.
        division: Of the plan, by that version.
        plan: The plan as it is carried out.
        lost_shards: The plan lacks shards of the version, or has changed ones.

    Returns:
        Staged rows, with `unit` and `row` in the unit.
    """
    tables = [read_columns(store, part.path) for part in retry.base.quarantine_parts]
    if not tables:
        return None
    rows = pa.concat_tables(tables)
    go_again = sorted(retry.reasons)
    if lost_shards:
        # The row that has the same id may be gone with its shard; otherwise they fail again.
        go_again.append(Reason.DUPLICATE_ID.value)
    kept = pc.invert(pc.is_in(rows.column("reason"), pa.array(go_again)))
    rows = rows.filter(pc.and_(kept, rows.column(ROW).is_valid()))
    failed = {shard.uri: shard.failed for _, shard in division.known.values()}
    of_shard, root = _by_shard(rows, failed), Store(plan.source_root)
    places = [np.zeros((0, 3), np.int64)]
    for unit in plan.units:
        first = 0
        for extent in unit.extents:
            if extent.path in division.known and (uri := root.url(extent.path)) in of_shard:
                at, numbers = of_shard[uri]
                in_extent = numbers
                if unit.cut is None:
                    is_inside, in_extent = extent.positions(numbers)
                    at = at[is_inside]
                in_unit = first + in_extent
                places.append(np.column_stack((np.full(len(at), unit.index), in_unit, at)))
            first += extent.num_rows
    placed = np.concatenate(places)
    if not len(placed):
        return None
    rows = rows.take(pa.array(placed[:, 2]))
    columns = {"unit": pa.array(placed[:, 0]), "row": pa.array(placed[:, 1])}
    for field in plan.staged_schema():
        name = _NAMES.get(field.name, field.name)
        is_there = name in rows.column_names
        values = rows.column(name) if is_there else pa.nulls(rows.num_rows, field.type)
        columns[field.name] = values
    return pa.table(columns)


def _by_shard(rows: pa.Table, failed: Mapping[str, Ranges]) -> dict[str, tuple[Numbers, Numbers]]:
    """Return URI -> indexes in a table of the failed rows of a shard, and their numbers in it.

    Args:
        rows: Rows of a quarantine.
        failed: URI -> numbers of the rows to return.
    """
    shards = as_array(rows.column(SHARD)).dictionary_encode()
    codes, numbers = np.asarray(shards.indices), np.asarray(rows.column(ROW))
    order = np.lexsort((numbers, codes))
    bounds = np.searchsorted(codes[order], np.arange(len(shards.dictionary) + 1))
    by_shard = {}
    for uri, inside in zip(shards.dictionary.to_pylist(), pairwise(bounds), strict=True):
        at = order[slice(*inside)]
        at = at[failed.get(uri, EMPTY).mask_of(numbers[at])]
        by_shard[uri] = at, numbers[at]
    return by_shard
