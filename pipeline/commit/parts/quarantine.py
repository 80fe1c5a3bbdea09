"""Staged rows without a prediction, as the quarantine has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.staging import StagedSlice
from pipeline.core.failures import Reason
from pipeline.core.figures.counters import PUBLISH
from pipeline.core.schema import (
    ERROR,
    ERROR_STAGE,
    MESSAGE,
    NUM_BYTES,
    QUARANTINE_SCHEMA,
    ROW,
    ROW_ID,
    SHA256,
    SHARD,
    URI,
)

DUPLICATE = {
    ERROR: Reason.DUPLICATE_ID.value,
    ERROR_STAGE: PUBLISH,
    MESSAGE: "an earlier row has the same id",
}
"""What a row gets that would have a prediction if its id were another one."""


def mark_duplicates(rows: pa.Table, duplicates: Sequence[int]) -> pa.Table:
    """Fail staged rows because of their ids; one that has failed keeps its reason."""
    if not duplicates:
        return rows
    is_duplicate = np.zeros(rows.num_rows, bool)
    is_duplicate[list(duplicates)] = True
    # A row that failed for another reason keeps it.
    mask = pc.and_(pa.array(is_duplicate), pc.is_null(rows.column(ERROR)).combine_chunks())
    for name, value in DUPLICATE.items():
        index = rows.column_names.index(name)
        changed = pc.if_else(mask, pa.scalar(value), rows.column(name).combine_chunks())
        rows = rows.set_column(index, name, changed)
    return rows


def to_quarantine(
    rows: pa.Table, staged: StagedSlice, places: tuple[Sequence[str | None], Sequence[int | None]]
) -> pa.Table:
    """Return failed staged rows as they are quarantined; `places` are their shards and rows."""
    return pa.table(
        {
            ROW_ID: rows.column(ROW_ID),
            URI: rows.column(URI),
            "stage": rows.column(ERROR_STAGE),
            "reason": rows.column(ERROR),
            MESSAGE: rows.column(MESSAGE),
            SHA256: rows.column(SHA256),
            NUM_BYTES: rows.column(NUM_BYTES),
            SHARD: pa.array(places[0], pa.string()),
            ROW: pa.array(places[1], pa.int64()),
            "run_id": pa.array([staged.run_id] * rows.num_rows, pa.string()),
        },
        schema=QUARANTINE_SCHEMA,
    )
