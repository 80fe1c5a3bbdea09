"""Set rows of a slice aside that need no model, and put them back when the slice is staged.

Their input does not cross the object store, and the stages between do not see them: for these the
slice has the other rows alone. A row that is set aside gets the result of another row of the slice,
or none here: its prediction is taken over from an earlier version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers, as_array, with_nulls
from pipeline.core.schema import RESULT_AT, ROW_ID

NO_RESULT = -1


def set_aside(
    rows: pa.Table, result_of: Numbers, names: Sequence[str], facts: Mapping[str, pa.Array]
) -> tuple[pa.Table, pa.Table]:
    """Divide the rows of a slice.

    Args:
        rows: N rows.
        result_of: (N,): the row whose result each row gets, which gets its own; or NO_RESULT.
        names: The columns of rows that are not results: `row_id` and others that are staged.
        facts: Further columns for all rows, each (N,).

    Returns:
        The M rows that get their own result, in order; and N rows with the columns `facts`, what
        RESULT_AT says, and `names`, which are null for those M rows.
    """
    goes_on = result_of == np.arange(rows.num_rows)
    places = (np.cumsum(goes_on) - 1)[result_of]
    at = pa.array(places, pa.int32(), mask=result_of == NO_RESULT)
    if goes_on.all():
        own = {name: pa.nulls(rows.num_rows, rows.schema.field(name).type) for name in names}
        return rows, pa.table({**facts, RESULT_AT: at, **own})
    own = {name: with_nulls(as_array(rows.column(name)), goes_on) for name in names}
    return rows.filter(pa.array(goes_on)), pa.table({**facts, RESULT_AT: at, **own})


def num_going_on(aside: pa.Table) -> int:
    """Return M."""
    return int(aside.column(ROW_ID).null_count)


def of_rows_going_on(aside: pa.Table, fact: str) -> pa.ChunkedArray:
    """Return a column of `facts` for the M rows that were not set aside."""
    return aside.column(fact).filter(aside.column(ROW_ID).is_null())


def put_back(computed: pa.Table, aside: pa.Table, facts: Sequence[str]) -> pa.Table:
    """Return the staged rows of the whole slice, N.

    Args:
        computed: The staged rows of the M rows that went on, in order.
        aside: As `set_aside` made it.
        facts: Columns to add of those that were given to it.
    """
    rows = computed if computed.num_rows == aside.num_rows else _all_rows(computed, aside)
    for name in facts:
        if name in aside.column_names:
            rows = rows.append_column(name, aside.column(name))
    return rows


def _all_rows(computed: pa.Table, aside: pa.Table) -> pa.Table:
    is_aside = aside.column(ROW_ID).is_valid().to_numpy()
    at = aside.column(RESULT_AT)
    results = computed.take(at)
    names = [name for name in aside.column_names if name in computed.column_names]
    own = aside.select(names).filter(pa.array(is_aside)).cast(computed.select(names).schema)
    places = np.cumsum(is_aside) - 1 + computed.num_rows
    at_own = np.where(is_aside, places, at.fill_null(NO_RESULT).to_numpy())
    others = pa.concat_tables([computed.select(names), own]).take(pa.array(at_own))
    columns = {n: (others if n in names else results).column(n) for n in computed.column_names}
    return pa.table(columns, schema=computed.schema)
