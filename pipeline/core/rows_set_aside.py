"""Set known rows of a slice aside, and put them back when the slice is staged.

The input of known rows does not cross the object store, and the stages do not see them. Beside a
slice of N rows travels a table of N rows with the columns

- IS_COMPUTED, bool: the row goes through the stages; M rows do.
- SOURCE, string: `Version.source` of the version that knows the row; null if none does.
- all staged columns, as in that version; null where no version knows the row.
- INPUT_HASH, if hashes are kept.

A known row that is computed is checked: both results are compared when it is staged.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.schema import ERROR, INPUT_HASH, IS_COMPUTED, SOURCE

NOT_READ = "predictions of an earlier version could not be read, so rows were computed"
"""The beginning of lines of advice about it."""


def num_computed(aside: pa.Table) -> int:
    """Return M, the number of rows that go through the stages."""
    return int(as_array(aside.column(IS_COMPUTED)).true_count)


def checked_pairs(computed: pa.Table, aside: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the known rows that were computed: as they are known, and as computed.

    Args:
        computed: M staged rows, in order.
        aside: The table of N rows.
    """
    is_computed = np.asarray(aside.column(IS_COMPUTED))
    is_checked = is_computed & np.asarray(aside.column(SOURCE).is_valid())
    names = computed.column_names
    known = aside.select(names).filter(pa.array(is_checked))
    return known, computed.filter(pa.array(is_checked[is_computed]))


def put_back(computed: pa.Table, aside: pa.Table) -> pa.Table:
    """Return the N staged rows of the whole slice; known rows that failed now are kept as known.

    Args:
        computed: M staged rows, in order.
        aside: The table of N rows.
    """
    names = computed.column_names
    is_computed = np.asarray(aside.column(IS_COMPUTED))
    is_known = np.asarray(aside.column(SOURCE).is_valid())
    takes = np.zeros(len(is_known), bool)
    takes[is_computed] = np.asarray(computed.column(ERROR).is_null())
    takes |= is_computed & ~is_known
    known = aside.select(names).filter(pa.array(is_known)).cast(computed.schema)
    at_known = np.cumsum(is_known) - 1 + computed.num_rows
    places = np.where(takes, np.cumsum(is_computed) - 1, at_known)
    rows = pa.concat_tables([computed, known]).take(pa.array(places))
    if INPUT_HASH in aside.column_names:
        rows = rows.append_column(INPUT_HASH, aside.column(INPUT_HASH))
    return rows


def is_taken_over(computed: pa.Table, aside: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which of the N rows keep the result of an earlier version, bool (N,)."""
    is_computed = np.asarray(aside.column(IS_COMPUTED))
    taken = np.asarray(aside.column(SOURCE).is_valid())
    taken[is_computed] &= np.asarray(computed.column(ERROR).is_valid())
    return taken
