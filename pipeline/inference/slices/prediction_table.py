"""The table of a slice after the model: predictions and failures together."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.core.failures import Failure, failure_columns, failures_of, without_failure
from pipeline.core.registry import TASKS
from pipeline.core.schema import ROW_ID, URI, staged_schema
from pipeline.core.user_code.own_code import ContractError, errors_told
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays, Task


def to_table(
    task: Task,
    pass_through: pa.Schema,
    rows: pa.Table,
    results: Arrays,
    failures: Sequence[Failure | None],
    published: Sequence[pa.Field] = (),
) -> pa.Table:
    """Return the rows with the columns of `staged_schema`, in the same order.

    Args:
        task: Makes the columns of the results.
        pass_through: The columns to copy.
        rows: The slice of N rows that was predicted.
        results: The reduced outputs, name -> (N, ...); empty if no row was predicted.
        failures: (N,); None for a row with a prediction.
        published: Further columns to copy, null if rows were never prepared:
            `Input.published_fields`.
    """
    with errors_told(TASKS, task.spec.kind):
        return _to_table(task, pass_through, rows, results, failures, published)


def _to_table(
    task: Task,
    pass_through: pa.Schema,
    rows: pa.Table,
    results: Arrays,
    failures: Sequence[Failure | None],
    published: Sequence[pa.Field],
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
        task.columns(results, ok, rows)
        if results
        else {field.name: pa.nulls(rows.num_rows, field.type) for field in fields}
    )
    columns |= failure_columns(failures)
    if missing := [field.name for field in fields if field.name not in columns]:
        raise ContractError(f"columns() gives no {', '.join(missing)}, which fields() declares")
    schema = staged_schema(list(pass_through), [*fields, *published])
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def unpredicted(config: PredictorConfig, rows: pa.Table) -> pa.Table:
    """Return a slice of failed rows with the columns of `to_table`; needs no model."""
    spec = config.spec
    published = spec.input.published_fields()
    return to_table(
        make_task(spec.task), config.pass_through, rows, {}, failures_of(rows), published
    )
