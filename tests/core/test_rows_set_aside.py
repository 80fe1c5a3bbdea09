"""Rows that are set aside return to their places with their known results."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.rows_set_aside import checked_pairs, is_taken_over, num_computed, put_back

FIELDS = [
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("city", pa.dictionary(pa.int32(), pa.string())),
    pa.field("place", pa.struct([("x", pa.int64())])),
    pa.field("vector", pa.list_(pa.float32(), 2)),
    pa.field("error", pa.string()),
]
STATES = st.sampled_from(["computed", "failed", "known", "checked", "checked, failed"])


def rows_of(states: list[str], salt: int) -> pa.Table:
    """Rows as they are staged; of failed ones only the id is there."""
    numbers = [None if "failed" in state else salt + row for row, state in enumerate(states)]
    columns = [
        [f"r{row}" for row in range(len(states))],
        [None if n is None else "ab"[n % 2] for n in numbers],
        [None if n is None else {"x": n} for n in numbers],
        [None if n is None else [n, n] for n in numbers],
        ["why" if "failed" in state else None for state in states],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, FIELDS, strict=True)]
    return pa.table(arrays, schema=pa.schema(FIELDS))


@given(st.lists(STATES, max_size=30))
def test_each_row_has_its_own_result_and_a_failed_one_that_is_known_the_known(states: list[str]):
    is_computed = np.array([state != "known" for state in states], bool)
    is_known = np.array(["known" in s or "checked" in s for s in states], bool)
    before = rows_of(["known"] * len(states), 100)
    index = pa.array(np.arange(len(states)), mask=~is_known)
    aside = pa.table(
        {
            "_is_computed": is_computed,
            "_source": pa.array(["v" if known else None for known in is_known], pa.string()),
            "input_hash": pa.array([b"%016d" % row for row in range(len(states))], pa.binary(16)),
            **{name: before.column(name).take(index) for name in before.column_names},
        }
    )
    computed = rows_of(states, 0).filter(pa.array(is_computed))
    rows = put_back(computed, aside).to_pylist()
    now, then = rows_of(states, 0).to_pylist(), before.to_pylist()
    takes_known = [state in ("known", "checked, failed") for state in states]
    expected = [b if known else a for a, b, known in zip(now, then, takes_known, strict=True)]
    hashes = aside.column("input_hash").to_pylist()
    assert rows == [{**r, "input_hash": h} for r, h in zip(expected, hashes, strict=True)]
    assert num_computed(aside) == computed.num_rows
    assert is_taken_over(computed, aside).tolist() == takes_known
    checked = [row for row, state in enumerate(states) if "checked" in state]
    pairs = [table.to_pylist() for table in checked_pairs(computed, aside)]
    assert pairs == [[then[row] for row in checked], [now[row] for row in checked]]
