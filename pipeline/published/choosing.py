"""Find the least certain rows of published parts.

Of all rows only the scores are read; then the parts that have those that are found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.core.schema import DETECTIONS, ENTITIES, LABELS, SCORE
from pipeline.published.dataset import PublishedParts

LISTS = (DETECTIONS, LABELS, ENTITIES)
_BATCH_ROWS = 32_768


def score_column(parts: PublishedParts) -> str | None:
    """Return the column that has the scores of a row; None: its task gives none."""
    return next((name for name in (SCORE, *LISTS) if name in parts.schema.names), None)


def least_certain(
    parts: PublishedParts,
    column: str,
    number: int,
    columns: Sequence[str] | None = None,
    most: int | None = None,
) -> tuple[pa.Table, int]:
    """Return the rows with the lowest scores, the lowest first, and how many were looked at.

    Args:
        column: Their scores: `score_column`.
        number: The most rows to return; rows without a score are not among them.
        columns: Of these rows; None: all.
        most: Further parts are not looked at once so many rows were.

    Raises:
        NotReadable: A part is gone.
    """
    lowest_rows: list[tuple[float, int, int]] = []
    looked_at = 0
    for part in range(len(parts.parts)):
        if most is not None and looked_at >= most:
            break
        row, rows = 0, parts.only([part]).dataset()
        for batch in rows.to_batches([column], batch_size=_BATCH_ROWS, batch_readahead=1):
            scores = _scores(batch.column(0), column)
            lowest = np.argsort(scores, kind="stable")[:number]
            lowest = lowest[~np.isnan(scores[lowest])]
            known = ((float(scores[n]), part, row + int(n)) for n in lowest)
            lowest_rows = sorted([*lowest_rows, *known])[:number]
            row += batch.num_rows
        looked_at += row
    datasets = {part: parts.only([part]).dataset() for _, part, _ in lowest_rows}
    tables = [_row_at(datasets[part], row, columns) for _, part, row in lowest_rows]
    return pa.concat_tables([parts.dataset().head(0, columns=columns), *tables]), looked_at


def _row_at(dataset: ds.Dataset, row: int, columns: Sequence[str] | None) -> pa.Table:
    """Read one row of a part: no more than the row group that has it."""
    [fragment] = dataset.get_fragments()
    for group in fragment.row_groups:
        if row < group.num_rows:
            break
        row -= group.num_rows
    row_group = fragment.subset(row_group_ids=[group.id])
    return row_group.to_table(schema=dataset.schema, columns=columns).slice(row, 1)


def _scores(values: pa.Array, column: str) -> npt.NDArray[np.float64]:
    """Return the score of each row, NaN if it has none: of entries the best, of entities the
    worst.
    """
    if column == SCORE:
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    rows = np.asarray(pc.list_parent_indices(values))
    entries = values.flatten().field(SCORE).cast(pa.float64()).to_numpy(zero_copy_only=False)
    scores = np.full(len(values), np.nan)
    pick = np.fmin if column == ENTITIES else np.fmax
    pick.at(scores, rows, entries)
    return scores
