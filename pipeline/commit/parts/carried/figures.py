"""What is asked of carried predictions before they are written: their distribution, and their ids.

Only the columns that are needed are read. Where most of a version is carried, only what is not:
how all of it is distributed is in its manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.parts.carried.order import Ranges, joined, put_in_order, steps
from pipeline.commit.parts.carried.rows import UNKNOWN, LookedUp
from pipeline.commit.parts.carried.version import CarriedVersion, OldReader, OldRows, Traffic
from pipeline.commit.parts.compaction import DuplicateRows, RunTasks, SizedSlice
from pipeline.commit.parts.part_reader import read_columns
from pipeline.commit.parts.row_ids import LabelledDuplicates, OtherRows, find_repeated, hash_ids
from pipeline.commit.staging import count_labels
from pipeline.core.arrays import Numbers
from pipeline.core.figures.histograms import Distribution, measure_numbers
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE, ERROR, LABEL, ROW_ID
from pipeline.planning.carried import Carried
from pipeline.storage.store import Store

_ROWS_PER_TASK = 500_000
_FOUND_PER_TASK = 65_536
_NONE = np.zeros(0, np.int64)
_IDS = pa.schema([pa.field(ROW_ID, pa.string(), nullable=False)])


def measure_carried(
    store: Store,
    versions: Sequence[CarriedVersion],
    carried: Carried,
    schema: pa.Schema,
    columns: Sequence[str],
    run_tasks: RunTasks,
    *,
    gone: Numbers = _NONE,
) -> tuple[Distribution, Traffic]:
    """Return how the carried predictions are distributed, without rows found by content.

    Args:
        carried: What is carried.
        columns: Whose numbers are counted, as `task.measured_columns` names them.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.
        gone: int64 (G,): numbers of predictions that are not carried, because of their ids.

    Raises:
        NotReadable: A part of an earlier version is gone, or damaged.
    """
    old, how = OldRows.of(versions), (_seen(schema, columns), columns)
    traffic = Traffic()

    def measured(spans: Ranges) -> Distribution:
        nonlocal traffic
        found = run_tasks(measure_rows, [(store, *call, *how) for call in _calls(old, spans)])
        traffic = sum((read for _, read in found), traffic)
        return sum((part for part, _ in found), Distribution())

    total, first = Distribution(), 0
    for source, version in enumerate(versions):
        own = carried.runs[carried.runs[:, 2] == source]
        taken = joined(Ranges(own[:, 3] + first, own[:, 3] + first, own[:, 4]))
        taken = taken.cut(taken.firsts, np.append(gone, gone + 1))
        taken = taken.take(~np.isin(taken.firsts, gone))
        ends, starts = (
            np.append(first, taken.ends),
            np.append(taken.firsts, first := first + version.num_rows),
        )
        left, whole = None, Distribution.from_dict(version.manifest.distribution)
        is_less = (starts >= ends).all() and (starts - ends).sum() < taken.counts.sum()
        # Rows that lost their prediction because of their id are still among the numbers.
        if is_less and whole.num_counted == version.num_rows:
            left = whole.without(measured(joined(Ranges(ends, ends, starts - ends))))
        total += measured(taken) if left is None else left
    return total, traffic


def measure_rows(
    store: Store, old: OldRows, spans: Ranges, seen: pa.Schema, columns: Sequence[str]
) -> tuple[Distribution, Traffic]:
    """Return how predictions are distributed; `seen` are the columns that this takes."""
    reader = OldReader(store, old, seen)
    found = Distribution()
    for rows, _ in reader.read(spans.firsts, spans.counts, spans.ranks):
        found += _measure(rows, columns)
    return found, reader.traffic


def measure_found(
    store: Store,
    versions: Sequence[CarriedVersion],
    slices: Sequence[SizedSlice],
    duplicates: DuplicateRows,
    looked_up: LookedUp,
    columns: Sequence[str],
    run_tasks: RunTasks,
) -> tuple[Distribution, int, Traffic]:
    """Return how the predictions are distributed that staged rows take over, and their number.

    Args:
        slices: Of the work plan.
        duplicates: Rows of them that have no prediction, because of their ids.
        looked_up: Tells which rows those are.
        columns: As of `measure_carried`.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.

    Raises:
        NotReadable: A part of an earlier version is gone, or damaged.
    """
    old, calls = OldRows.of(versions), list[list[tuple[str, Sequence[int]]]]()
    num_rows = _FOUND_PER_TASK
    for key, path, _ in slices:
        if num_rows + key.num_rows > _FOUND_PER_TASK:
            calls.append([])
            num_rows = 0
        calls[-1].append((path, duplicates.get(key, ())))
        num_rows += key.num_rows
    found = run_tasks(find_and_measure, [(store, old, call, looked_up, columns) for call in calls])
    return (
        sum((part for part, _, _ in found), Distribution()),
        sum(rows for _, rows, _ in found),
        sum((read for _, _, read in found), Traffic()),
    )


def find_and_measure(
    store: Store,
    old: OldRows,
    slices: Sequence[tuple[str, Sequence[int]]],
    looked_up: LookedUp,
    columns: Sequence[str],
) -> tuple[Distribution, int, Traffic]:
    """Do so for some slices; beside the path of each are its duplicates."""
    numbers = [_NONE]
    names = [*looked_up.taken.names, CARRIED_SOURCE, CARRIED_ROW, ERROR]
    for path, duplicates in slices:
        rows = read_columns(store, path, names)
        if CARRIED_ROW in rows.column_names:
            is_good = np.asarray(rows.column(ERROR).is_null())
            is_good[list(duplicates)] = False
            rows = rows.filter(pa.array(is_good))
            own = looked_up.numbers_of(rows, rows)
            numbers.append(own[own != UNKNOWN])
    wanted, places = np.unique(np.concatenate(numbers), return_inverse=True)
    reader = OldReader(store, old, _seen(looked_up.schema, columns))
    rows = reader.at(wanted).take(pa.array(places))
    return _measure(rows, columns), len(places), reader.traffic


def find_carried_duplicates(
    store: Store,
    slices: Sequence[SizedSlice],
    hashes: Sequence[npt.NDArray[np.uint64]],
    carried: Carried,
    versions: Sequence[CarriedVersion],
    run_tasks: RunTasks,
) -> tuple[LabelledDuplicates, Numbers]:
    """Find the rows, computed or carried, whose id an earlier row of the input has.

    Args:
        slices: Of the work plan, in input order.
        hashes: Of the ids of each, as `read_hashes` returns them.
        carried: What is carried.
        run_tasks: Calls a function for every tuple of arguments; results in the order of calls.

    Returns:
        As `find_repeated`; of those that are carried the numbers, as `compact_carried` takes them.

    Raises:
        NotReadable: A part of an earlier version is gone, or damaged.
    """
    placed, old = put_in_order(slices, carried, versions), OldRows.of(versions)
    runs = placed.runs.take(np.argsort(placed.runs.firsts, kind="stable"))
    numbers = np.repeat(runs.firsts, runs.counts) + steps(runs.counts)
    found = run_tasks(hash_carried, [(store, *call) for call in _calls(old, runs)])

    def read(chosen: Numbers) -> list[str]:
        table = OldReader(store, old, _IDS).at(numbers[chosen])
        return [str(value) for value in table.column(ROW_ID).to_pylist()]

    others = OtherRows(
        np.concatenate([np.zeros(0, np.uint64), *found]),
        np.repeat(runs.ranks, runs.counts) + steps(runs.counts),
        read,
        placed.order.rank_of,
    )
    paths = [(key, path) for key, path, _ in slices]
    duplicates, repeated = find_repeated(store, paths, hashes, others)
    return duplicates, numbers[repeated]


def hash_carried(store: Store, old: OldRows, spans: Ranges) -> npt.NDArray[np.uint64]:
    """Hash the row ids of predictions, uint64 (N,)."""
    rows = OldReader(store, old, _IDS).read(spans.firsts, spans.counts, spans.ranks)
    return np.concatenate([hash_ids(each.column(ROW_ID)) for each, _ in rows])


def _measure(rows: pa.Table, columns: Sequence[str]) -> Distribution:
    return Distribution(dict(count_labels(rows, columns)), 0, measure_numbers(rows, columns))


def _seen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([field for field in schema if field.name in (LABEL, *columns)])


def _calls(old: OldRows, spans: Ranges) -> Iterator[tuple[OldRows, Ranges]]:
    """Divide predictions among tasks."""
    spans = spans.cut(spans.firsts, old.starts)
    task = (np.cumsum(spans.counts) - spans.counts) // _ROWS_PER_TASK
    for number in np.unique(task).tolist():
        own = spans.take(task == number)
        yield old.only(own.firsts), own
