"""Compare carried rows that were predicted again with what their version says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.parts.carried.version import CarriedVersion, OldReader, OldRows
from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.arrays import Numbers
from pipeline.core.failures import Reason
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE, ERROR, ROW_ID
from pipeline.gates.carried import differing_rows
from pipeline.models.agreement import AgreementLimits
from pipeline.models.tasks.base import Task
from pipeline.planning.carried import Carried
from pipeline.planning.tiling import Slices
from pipeline.storage.store import Store

_TASK_BYTES, _LEAST_BYTES = 64 * 2**20, 2**20
"""Of the staged parts that a task reads, and what each counts at least: few and small ones are read
before a worker is started to read them beside each other."""
_THREADS = 8
_OF_THE_MOMENT = [
    Reason.UNREADABLE_SHARD,
    Reason.MISSING,
    Reason.UNREACHABLE,
    Reason.OUT_OF_MEMORY,
    Reason.TIMEOUT,
    Reason.NATIVE_CRASH,
]
_Call = tuple[int, tuple[Any, ...]]
"""Bytes of a staged part, and how it is read."""


def compare_checked(
    store: Store,
    task: Task,
    slices: Slices,
    carried: Carried,
    versions: Sequence[CarriedVersion],
    limits: AgreementLimits,
    run_tasks: RunTasks,
) -> tuple[int, list[str]]:
    """Compare rows of the work with the predictions that are known of them.

    Args:
        slices: Of the work, in order.
        carried: What is carried, and which rows were chosen before.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.

    Returns:
        How many rows were compared; and the ones that differ, a line each. Those that fail now for
        what may be of this machine or moment are left out: gates of failed rows judge them.

    Raises:
        NotReadable: A part of an earlier version is gone, or damaged.
    """
    columns = [field.name for field in task.fields()]
    sizes = np.array([version.num_rows for version in versions], np.int64)
    firsts, checked = np.cumsum(sizes) - sizes, carried.checked
    calls = _calls(store, slices, checked, (ROW_ID, ERROR, *columns))
    staged = _read(read_rows, calls, run_tasks)
    numbers = firsts[checked[:, 2]] + checked[:, 3]
    if carried.by_content:
        paths = [(file.size_bytes, (store, file.path, tuple(columns))) for _, file in slices]
        for rows in _read(read_found, paths, run_tasks):
            source = rows.column(CARRIED_SOURCE).to_numpy()
            numbers = np.append(numbers, firsts[source] + rows.column(CARRIED_ROW).to_numpy())
            staged.append(rows.select([ROW_ID, ERROR, *columns]))
    if not len(numbers):
        return 0, []
    found = pa.concat_tables(staged)
    reader = OldReader(store, OldRows.of(versions), pa.schema(task.fields()))
    ascending, at = np.unique(numbers, return_inverse=True)
    known = reader.at(ascending).take(pa.array(at))
    errors = found.column(ERROR)
    is_good, is_of_moment = pc.is_null(errors), pc.is_in(errors, pa.array(_OF_THE_MOMENT))
    failed = found.filter(pc.invert(pc.or_(is_good, is_of_moment))).select([ROW_ID, ERROR])
    lines = [f"{row[ROW_ID]}: is in quarantine now: {row[ERROR]}" for row in failed.to_pylist()]
    found, known = found.filter(is_good), known.filter(is_good)
    ids = found.column(ROW_ID).to_pylist()
    lines += differing_rows(task, ids, known, found.select(columns), limits)
    return len(ids) + failed.num_rows, lines


def _read(
    read: Callable[..., pa.Table], calls: Sequence[_Call], run_tasks: RunTasks
) -> list[pa.Table]:
    """Return what a function reads of staged parts, in the order of calls."""
    ends = np.cumsum([max(_LEAST_BYTES, size) for size, _ in calls]) // _TASK_BYTES
    pairs = zip(ends.tolist(), (arguments for _, arguments in calls), strict=True)
    groups = groupby(pairs, key=lambda pair: pair[0])
    tasks = [(read, [arguments for _, arguments in group]) for _, group in groups]
    return [rows for found in run_tasks(read_each, tasks) for rows in found]


def _calls(store: Store, slices: Slices, checked: Numbers, columns: Sequence[str]) -> list[_Call]:
    """Return, of each slice that has some of the rows, how they are read; in their order."""
    starts = np.array([(key.unit, key.start) for key, _ in slices], np.int64).reshape(-1, 2)
    # Units and rows are below 2**31 and 2**32: one number orders both.
    order, wanted = (each[:, 0] << 32 | each[:, 1] for each in (starts, checked))
    places = np.searchsorted(order, wanted, "right") - 1
    calls: list[_Call] = []
    for place in np.unique(places).tolist():
        key, file = slices[place]
        rows = checked[places == place, 1] - key.start
        calls.append((file.size_bytes, (store, file.path, rows, columns)))
    return calls


def read_each(read: Callable[..., pa.Table], calls: Sequence[tuple[Any, ...]]) -> list[pa.Table]:
    """Read some staged parts."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda arguments: read(*arguments), calls))


def read_rows(store: Store, path: str, rows: Numbers, columns: Sequence[str]) -> pa.Table:
    """Read some rows of a staged part."""
    return read_columns(store, path, list(columns)).take(pa.array(rows))


def read_found(store: Store, path: str, columns: Sequence[str]) -> pa.Table:
    """Read the rows of a staged part that were found by their content and computed all the same."""
    rows = read_columns(store, path, [ROW_ID, ERROR, CARRIED_SOURCE, CARRIED_ROW, *columns])
    if CARRIED_ROW not in rows.column_names:  # no version was looked up
        none = pa.nulls(rows.num_rows, pa.int64())
        rows = rows.append_column(CARRIED_SOURCE, none).append_column(CARRIED_ROW, none)
    has_own = np.asarray(rows.column(ERROR).is_valid())
    for name in columns:
        has_own = has_own | np.asarray(rows.column(name).is_valid())
    return rows.filter(pa.array(has_own & np.asarray(rows.column(CARRIED_ROW).is_valid())))
