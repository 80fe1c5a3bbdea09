"""Rows that are set aside come back in their places, with the results that they are to get."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.arrays import Numbers
from pipeline.core.rows.aside import NO_RESULT, num_going_on, of_rows_going_on, put_back, set_aside

NAMES = ["row_id", "uri", "city", "tags", "place"]


def rows_of(num_rows: int) -> pa.Table:
    """Rows with pass-through columns of many kinds, of which some values are null."""
    return pa.table(
        {
            "row_id": [f"r{row}" for row in range(num_rows)],
            "uri": [f"/in/{row}" for row in range(num_rows)],
            "city": pa.array(["a", None, "b"] * num_rows)[:num_rows].dictionary_encode(),
            "tags": pa.array(
                [[str(row)] if row % 2 else None for row in range(num_rows)], pa.list_(pa.string())
            ),
            "place": pa.array(
                [{"x": row, "y": None} for row in range(num_rows)],
                pa.struct([("x", pa.int64()), ("y", pa.float32())]),
            ),
            "image": pa.array([f"image {row}" for row in range(num_rows)], pa.large_string()),
        }
    )


def staged(rows: pa.Table) -> pa.Table:
    """What a model makes of rows: their input is gone, and each has a value that names it."""
    found = rows.select(NAMES).append_column("text", rows.column("image").cast(pa.string()))
    fields = [field.with_nullable(field.name != "row_id") for field in found.schema]
    return found.cast(pa.schema(fields))


@st.composite
def results(draw: st.DrawFn) -> Numbers:
    """Each row gets its own result, that of an earlier row that gets its own, or none."""
    found: list[int] = []
    for row in range(draw(st.integers(0, 12))):
        own = [each for each in range(row) if found[each] == each]
        found.append(draw(st.sampled_from([row, NO_RESULT, *own])))
    return np.array(found, np.int64)


@given(result_of=results())
def test_every_row_comes_back_with_its_own_columns_and_its_result(result_of: Numbers):
    rows = rows_of(len(result_of))
    numbers = pa.array(range(len(result_of)), pa.int16())
    kept, aside = set_aside(rows, result_of, NAMES, {"number": numbers})
    own = [row for row, of in enumerate(result_of) if row == of]
    assert kept.to_pylist() == rows.take(pa.array(own, pa.int64())).to_pylist()
    assert num_going_on(aside) == len(own)
    assert of_rows_going_on(aside, "number").to_pylist() == own
    assert aside.column("row_id").null_count == len(own)
    found = put_back(staged(kept), aside, ["number", "not there"])
    assert found.schema == staged(rows).schema.append(pa.field("number", pa.int16()))
    found.validate(full=True)
    assert found.select(NAMES).to_pylist() == rows.select(NAMES).to_pylist()
    assert found.column("text").to_pylist() == [
        None if of == NO_RESULT else f"image {of}" for of in result_of
    ]
    assert found.column("number").to_pylist() == numbers.to_pylist()
    assert put_back(staged(kept), aside, []).column_names == staged(rows).column_names
