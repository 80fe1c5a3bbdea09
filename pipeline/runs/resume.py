"""Resume the work of earlier runs: take over staged slices, and stage slices of known rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice

from pipeline.commit.parts.compaction import RunTasks
from pipeline.commit.parts.part_file import find_damaged
from pipeline.commit.staging import list_staged, read_footers
from pipeline.core.failures import Reason
from pipeline.core.slices import SliceKey
from pipeline.models.spec import ModelSpec
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import ContradictingSlices, Slices, done_slices, missing_units
from pipeline.process.failpoints import failpoint
from pipeline.process.liveness import note_progress
from pipeline.reuse.checked_sample import TooFewChecked, raised_probability
from pipeline.reuse.dividing import known_slices
from pipeline.reuse.filling import stage_known
from pipeline.runs.builders import make_writer
from pipeline.runs.context import RunContext
from pipeline.runs.work import Work
from pipeline.sources.units import Unit
from pipeline.storage.store import StoredFile

log = logging.getLogger(__name__)
_PARTS_PER_TASK = 32
_MENDED = Reason.MODEL_ERROR, Reason.UNREADABLE_SHARD
"""Reasons that may be fixed since, although no listing shows it."""
_SLICES_PER_TASK = 4
"""Slices of known rows per task: they share parts, which are then read once."""


def take_over(
    run: RunContext, plan: Plan, sources: frozenset[str] = frozenset()
) -> Mapping[SliceKey, StoredFile]:
    """Count the slices that are staged already; return the staged part of each.

    These slices are deleted, to be computed again: damaged ones, contradicting ones, those with
    rows of versions that are not among the `sources` of this run, and those of an interrupted retry
    with rows that failed again. So are slices in which the model failed on every row, because the
    cause may be fixed since in a user's code that no fingerprint knows, and slices of which no row
    could be read.
    """
    counted: set[SliceKey] = set()
    run.record.start_over()
    while True:
        staged = list_staged(run.store, run.layout.staging(plan.work))
        try:
            done = [key for key in done_slices(plan, staged) if key not in counted]
        except ContradictingSlices as error:
            log.warning("%s, as this run does", error)
            run.store.delete([staged[key].path for key in error.keys])
            continue
        paths, failed = [staged[key].path for key in done], list[str]()
        footers = read_footers(run.store, paths)
        for key, path, footer in zip(done, paths, footers, strict=True):
            note_progress("read the footer of a finished slice")
            if (
                footer is None
                or not sources.issuperset(footer.sources)
                or (run.record.is_retry and footer.num_quarantined)
                or any(map(footer.is_without_predictions_by, _MENDED))
            ):
                failed.append(path)
            else:
                run.record.resumed(footer)
                counted.add(key)
        if not failed:
            return staged
        run.store.delete(failed)  # another attempt at the same slice may now be listed


def drop_damaged(
    run: RunContext, staged: Mapping[SliceKey, StoredFile], run_tasks: RunTasks
) -> None:
    """Read all staged parts and delete the damaged ones, so that they are computed again."""
    paths = iter([file.path for file in staged.values()])
    calls = [(run.store, chunk) for chunk in iter(lambda: [*islice(paths, _PARTS_PER_TASK)], [])]
    for damaged in run_tasks(find_damaged, calls):
        for error in damaged.values():
            log.warning("%s; its slice is computed again", error)
        run.store.delete([*damaged])


def require_checked(run: RunContext, work: Work, slices: Slices) -> None:
    """Check that enough of the rows that were known by their content were predicted again.

    Raises:
        TooFewChecked: They were not; the slices of their units are deleted.
    """
    record, known = run.record, work.known
    if known is None or not record.num_carried or not record.units_with_looked_up_rows:
        return
    num_known = record.num_carried + record.num_checked
    probability = raised_probability(num_known, record.num_checked)
    if probability > known.checked_probability:
        units = record.units_with_looked_up_rows
        run.store.delete([file.path for key, file in slices if key.unit in units])
        raise TooFewChecked(num_known, probability)


def stage_known_slices(
    run: RunContext,
    work: Work,
    model: ModelSpec,
    staged: Mapping[SliceKey, StoredFile],
    run_tasks: RunTasks,
) -> Mapping[SliceKey, StoredFile]:
    """Stage the slices of which all rows are known; return the staged part of every slice.

    Args:
        model: With its chosen runtime.
    """
    plan, known = work.plan, work.known
    if known is None or not len(known.runs):
        return staged
    calls: list[dict[Unit, frozenset[int]]] = []
    num_rows = 0
    for unit, starts in missing_units(plan, staged).items():
        count = known.counts.get(unit.index)
        if count is None and unit.cut is not None:
            continue
        keys = known_slices(unit, frozenset(starts), count, known.most_rows)
        whole = [key for key in keys if not known.num_computed(key)]
        if not whole:
            continue
        if not calls or num_rows >= _SLICES_PER_TASK * known.most_rows:
            calls.append({})
            num_rows = 0
        calls[-1][unit] = frozenset(key.start for key in whole)
        num_rows += sum(key.num_rows for key in whole)
    if not calls:
        return staged
    writer = make_writer(run, plan, model)
    for slices in run_tasks(
        stage_known, [(known.of_units(units), writer, units) for units in calls]
    ):
        for one in slices:
            run.record.computed(one)
            failpoint("slice_done")
    return list_staged(run.store, run.layout.staging(plan.work))
