"""Match each row of a retry with the quarantine entry that it replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.commit.parts.carried.order import steps
from pipeline.commit.parts.compaction import DuplicateRows, RunTasks
from pipeline.commit.parts.part_reader import read_columns
from pipeline.core.arrays import Numbers
from pipeline.core.errors import InfraError
from pipeline.core.failures import Reason
from pipeline.core.schema import ERROR
from pipeline.core.slices import SliceKey
from pipeline.planning.tiling import Slices
from pipeline.runs.retry.plan import Replan
from pipeline.storage.store import Store


@dataclass(frozen=True)
class SliceOutcome:
    """What became of the rows of a slice."""

    is_good: npt.NDArray[np.bool_]
    ends_in_rest: bool
    """Its last row may stand for the rest of a tar, which cannot be read."""


NO_ENTRY = -1
"""Of a row that replaces no entry of the quarantine."""


@dataclass(frozen=True)
class Match:
    """Where the rows of a retry go; M rows in the order of the slices."""

    slices: Slices
    duplicates: Mapping[SliceKey, tuple[int, ...]]
    gone: Numbers
    """Rows of the quarantine that are replaced."""
    entries: Numbers
    """int64 (M,): the quarantine entry that each replaces, or NO_ENTRY: the row is left out."""
    minors: Numbers
    """int64 (M,): number of the row within its quarantine entry, from 0."""
    is_good: npt.NDArray[np.bool_]
    """bool (M,): predicted, and not under the id of another row."""

    @property
    def is_admitted(self) -> npt.NDArray[np.bool_]:
        """bool (M,): rows that replace an entry."""
        found: npt.NDArray[np.bool_] = self.entries != NO_ENTRY
        return found

    @property
    def num_recovered(self) -> int:
        """Retried rows that are predicted now."""
        return int((self.is_good & self.is_admitted).sum())

    @property
    def num_failed(self) -> int:
        """Retried rows that failed again."""
        return int((~self.is_good & self.is_admitted).sum())


def match_rows(
    replan: Replan, store: Store, slices: Slices, duplicates: DuplicateRows, run_tasks: RunTasks
) -> Match:
    """Find the entry that each row replaces.

    Raises:
        InfraError: The rows are not the ones that were planned.
    """
    outcomes: list[SliceOutcome] = run_tasks(
        read_slice_outcome, [(store, file.path) for _, file in slices]
    )
    is_good = [outcome.is_good.copy() for outcome in outcomes]
    for (key, _), good in zip(slices, is_good, strict=True):
        good[list(duplicates.get(key, ()))] = False
    if replan.base.plan.counts_by_reading:
        entries, minors, gone = _match_uncounted(replan, slices, outcomes)
    else:
        gone = replan.chosen.entries
        entries, minors = np.repeat(gone, replan.counts), steps(replan.counts)
    return Match(
        slices, duplicates, gone, entries, minors, np.concatenate([np.zeros(0, bool), *is_good])
    )


def read_slice_outcome(store: Store, path: str) -> SliceOutcome:
    """Read what became of the rows of a staged slice."""
    errors = read_columns(store, path, [ERROR]).column(ERROR)
    last = errors[-1].as_py() if len(errors) else None
    return SliceOutcome(np.asarray(errors.is_null()), last == Reason.UNREADABLE_SHARD.value)


def _match_uncounted(
    replan: Replan, slices: Slices, outcomes: Sequence[SliceOutcome]
) -> tuple[Numbers, Numbers, Numbers]:
    """Return entry and minor of each row, and the entries that are replaced."""
    of: dict[int, list[SliceOutcome]] = {unit.index: [] for unit in replan.plan.units}
    for (key, _), outcome in zip(slices, outcomes, strict=True):
        of[key.unit].append(outcome)
    nothing = np.zeros(0, np.int64)
    found = [(nothing, nothing, nothing)]
    first = 0
    for unit in replan.plan.units:
        assert unit.cut is not None, "uncounted rows have no bounds"
        num_only = len(unit.cut.rows.only or ())
        own = replan.chosen.entries[first : first + num_only + (unit.cut.rows.beyond is not None)]
        first += len(own)
        found.append(_match_shard(own, num_only, of[unit.index], unit.extents[0].path))
    entries, minors, gone = (np.concatenate(some) for some in zip(*found, strict=True))
    return entries, minors, gone


def _match_shard(
    own: Numbers, num_only: int, outcomes: Sequence[SliceOutcome], path: str
) -> tuple[Numbers, Numbers, Numbers]:
    """Match the rows of one unit: first those that were named, then what follows them."""
    num_rows = sum(len(outcome.is_good) for outcome in outcomes)
    if outcomes and outcomes[-1].ends_in_rest and num_rows <= num_only:
        # It breaks off earlier than it did: what was not reached stays as it is.
        reached = own[: num_rows - 1]
        return np.append(reached, NO_ENTRY), np.zeros(num_rows, np.int64), reached
    if num_rows < num_only or (num_rows > num_only and len(own) == num_only):
        raise InfraError(
            f"{path}: {num_rows} rows came of it, {num_only} were expected: it changed without a "
            "new time or size; write it anew, then use `pipeline run`"
        )
    counts = np.ones(len(own), np.int64)
    if len(own) > num_only:
        counts[-1] = num_rows - num_only
    return np.repeat(own, counts), steps(counts), own
