"""Compare carried rows that were predicted again with what their version says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.parts.carried_version import CarriedVersion, OldReader, OldRows
from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.arrays import Numbers
from pipeline.core.schema import ERROR, ROW_ID
from pipeline.gates.carried import differing_rows
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks.base import Task
from pipeline.planning.tiling import Slices
from pipeline.storage.store import Store


def compare_checked(
    store: Store,
    task: Task,
    slices: Slices,
    checked: Numbers,
    versions: Sequence[CarriedVersion],
    limits: AgreementLimits,
    run_tasks: RunTasks,
) -> tuple[int, list[str]]:
    """Compare rows of the work with the predictions that are known of them.

    Args:
        store: The sink.
        task: What the model does.
        slices: Of the work, in order.
        checked: int64 (S, 4), as `Carried.checked`.
        versions: The sources.
        limits: The job's.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.

    Returns:
        How many rows were compared, those that failed now left out; and the ones that differ, a
        line each.

    Raises:
        NotReadable: A part of an earlier version is gone, or damaged.
    """
    columns = [field.name for field in task.fields()]
    first_rows = np.array([(key.unit, key.start) for key, _ in slices], np.int64).reshape(-1, 2)
    # Units and rows are below 2**31 and 2**32: one number orders both.
    order = first_rows[:, 0] << 32 | first_rows[:, 1]
    wanted = checked[:, 0] << 32 | checked[:, 1]
    places = np.searchsorted(order, wanted, "right") - 1
    calls = []
    for place in np.unique(places).tolist():
        rows = checked[places == place, 1] - slices[place][0].start
        calls.append((store, slices[place][1].path, rows, (ROW_ID, ERROR, *columns)))
    if not calls:
        return 0, []
    staged = pa.concat_tables(run_tasks(read_rows, calls))
    sizes = np.array([version.num_rows for version in versions], np.int64)
    numbers = (np.cumsum(sizes) - sizes)[checked[:, 2]] + checked[:, 3]
    reader = OldReader(store, OldRows.of(versions), pa.schema(task.fields()))
    ascending, at = np.unique(numbers, return_inverse=True)
    known = reader.at(ascending).take(pa.array(at))
    is_good = pc.is_null(staged.column(ERROR))
    staged, known = staged.filter(is_good), known.filter(is_good)
    ids = staged.column(ROW_ID).to_pylist()
    return len(ids), differing_rows(task, ids, known, staged.select(columns), limits)


def read_rows(store: Store, path: str, rows: Numbers, columns: Sequence[str]) -> pa.Table:
    """Read some rows of a staged part."""
    return read_columns(store, path, list(columns)).take(pa.array(rows))
