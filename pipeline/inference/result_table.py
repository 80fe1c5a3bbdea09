"""The results of a slice: written to the places of their rows, then made into its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.failures import Failure, failure_columns, failures_of, without_failure
from pipeline.core.registry import TASKS
from pipeline.core.schema import ROW_ID, URI, staged_schema
from pipeline.core.user_code import ContractError, extension_errors
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays, Mask, Task
from pipeline.preprocessing.texts.windows import Windows

Values = npt.NDArray[Any]


def scatter_batch(
    results: dict[str, Values],
    name: str,
    size: int,
    batch: Values,
    values: Values,
    lengths: Values | None = None,
) -> None:
    """Write the values of a batch to the rows of its slice, padded with zeros to the longest.

    Args:
        results: Name -> (N, ...); the entry is made, or made longer for a longer batch.
        name: Name of the result.
        size: N, the rows of the slice.
        batch: (B,) row numbers in the slice.
        values: (B, ...); the size of axis 1 may differ from batch to batch.
        lengths: (B,): values along axis 1 that belong to the row, the rest is padding and becomes
            zero. None: all do.
    """
    held = results.get(name)
    if held is None:
        held = results[name] = np.zeros((size, *values.shape[1:]), values.dtype)
    if held.shape[1:] == values.shape[1:]:
        held[batch] = values
    else:
        width = values.shape[1]
        if width > held.shape[1]:
            longer = np.zeros((size, *values.shape[1:]), values.dtype)
            longer[:, : held.shape[1]] = held
            held = results[name] = longer
        held[batch, :width] = values
        held[batch, width:] = 0
    if lengths is not None:
        rows, places = np.nonzero(np.arange(held.shape[1]) >= lengths[:, None])
        held[batch[rows], places] = 0


def to_table(
    task: Task,
    pass_through: pa.Schema,
    rows: pa.Table,
    results: Arrays,
    is_done: Mask,
    failures: Sequence[Failure | None],
    published: Sequence[pa.Field] = (),
    windows: Windows | None = None,
) -> pa.Table:
    """Return the rows with the columns of `staged_schema`, in the same order.

    All engines make their tables here, so that a row lost by an engine is an error.

    Args:
        task: Makes the columns of the results.
        pass_through: Columns to copy.
        rows: The slice of N rows that was predicted.
        results: Reduced outputs, name -> (N, ...); empty if no row was predicted.
        is_done: (N,): which rows are in `results`.
        failures: (N,); None for a row with a prediction.
        published: Further columns to copy (`Input.published_fields`); null if rows were not
            prepared.
        windows: The W windows of the rows, if `results` are theirs, (W, ...).

    Raises:
        RuntimeError: A row has neither outputs nor a failure.
    """
    lost = np.flatnonzero(~is_done & without_failure(failures))
    if len(lost):
        raise RuntimeError(
            f"the engine lost {len(lost)} of {rows.num_rows} rows of a slice, which have neither a "
            f"prediction nor a failure, the first of them {rows.column(ROW_ID)[int(lost[0])]}"
        )
    with extension_errors(TASKS, task.spec.kind):
        return _to_table(task, pass_through, rows, results, failures, published, windows)


def _to_table(
    task: Task,
    pass_through: pa.Schema,
    rows: pa.Table,
    results: Arrays,
    failures: Sequence[Failure | None],
    published: Sequence[pa.Field],
    windows: Windows | None,
) -> pa.Table:
    ok = without_failure(failures)
    fields = task.fields()
    columns = {name: rows.column(name) for name in (ROW_ID, URI, *pass_through.names)}
    columns |= {
        field.name: rows.column(field.name)
        if field.name in rows.column_names
        else pa.nulls(rows.num_rows, field.type)
        for field in published
    }
    columns |= (
        columns_of(task, results, ok, rows, windows)
        if results
        else {field.name: pa.nulls(rows.num_rows, field.type) for field in fields}
    )
    columns |= failure_columns(failures)
    if missing := [field.name for field in fields if field.name not in columns]:
        raise ContractError(f"columns() gives no {', '.join(missing)}, which fields() declares")
    schema = staged_schema(list(pass_through), [*fields, *published])
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def columns_of(
    task: Task, results: Arrays, ok: Mask, rows: pa.Table, windows: Windows | None
) -> Mapping[str, pa.Array]:
    """Return the task's columns of rows, of their own results or of those of their windows."""
    if windows is None:
        return task.columns(results, ok, rows)
    return task.columns_of_windows(results, ok, rows, windows)


def unpredicted(config: PredictorConfig, rows: pa.Table) -> pa.Table:
    """Return the table of a slice whose rows have all failed; needs no model."""
    spec = config.spec
    published = spec.input.published_fields()
    none = np.zeros(rows.num_rows, np.bool_)
    return to_table(
        make_task(spec.task), config.pass_through, rows, {}, none, failures_of(rows), published
    )
