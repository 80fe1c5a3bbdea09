"""The table of a slice after the model: predictions and failures together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.core.failures import Failure, failure_columns, failures_of
from pipeline.core.schema import ROW_ID, URI, staged_schema
from pipeline.models.tasks.base import Arrays, Task


def to_table(
    task: Task,
    pass_through: pa.Schema,
    rows: pa.Table,
    results: Arrays,
    failures: Sequence[Failure | None],
) -> pa.Table:
    """Return the rows with the columns of `staged_schema`, in the same order.

    Args:
        task: Makes the columns of the results.
        pass_through: The columns to copy.
        rows: The slice of N rows that was predicted.
        results: The reduced outputs, name -> (N, ...); empty if no row was predicted.
        failures: (N,); None for a row with a prediction.
    """
    ok = np.array([failure is None for failure in failures], bool)
    fields = task.fields()
    columns = {name: rows.column(name) for name in (ROW_ID, URI)}
    columns |= {name: rows.column(name) for name in pass_through.names}
    columns |= (
        task.columns(results, ok)
        if results
        else {field.name: pa.nulls(rows.num_rows, field.type) for field in fields}
    )
    columns |= failure_columns(failures)
    schema = staged_schema(list(pass_through), fields)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def unpredicted(task: Task, pass_through: pa.Schema, rows: pa.Table) -> pa.Table:
    """Return a slice of failed rows with the columns of `to_table`; needs no model."""
    return to_table(task, pass_through, rows, {}, failures_of(rows))
