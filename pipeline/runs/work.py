"""The work of a run: rows to compute and rows known from earlier versions; how it is divided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.part_file import DamagedPart
from pipeline.commit.parts.row_ids import sum_of_parts
from pipeline.commit.plan_store import adopt_plan
from pipeline.core.errors import InfraError
from pipeline.core.printable import num_of
from pipeline.execution.executors import Executor
from pipeline.models.spec import ModelSpec
from pipeline.models.weights.weights import warn_random_weights
from pipeline.planning.allocation import allocate
from pipeline.planning.plan import Plan
from pipeline.preprocessing.model_input import cost_of
from pipeline.process.shared_notes import note
from pipeline.report.recorder import RunRecorder
from pipeline.report.sections.carried import carried_section
from pipeline.reuse.checked_sample import TooFewChecked
from pipeline.reuse.dividing import Known
from pipeline.reuse.finding import Reuse, find_reuse
from pipeline.reuse.retried import Quarantined, Retry, read_quarantined
from pipeline.runs.context import RunContext, Settled
from pipeline.runs.ending import lost_run
from pipeline.runs.tuning.auto import resolve_runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A plan to carry out, and the version that it replaces."""

    plan: Plan
    """The stored plan."""
    model: ModelSpec
    base: Manifest | None
    """The published version of the partition."""
    reuse: Reuse
    known: Known | None = None
    """The known rows, for readers; None if all rows are computed, and none gets a hash."""
    quarantined: Quarantined | None = None
    """For a retry: the failed rows of the base."""

    @property
    def published_model(self) -> Mapping[str, Any] | None:
        """The model as it ran for the rows that a retry keeps; None if it may run in any way."""
        return self.base.model if self.quarantined and self.base and self.reuse.division else None

    @property
    def is_vain(self) -> bool:
        """Whether this is a retry without rows."""
        return self.quarantined is not None and not self.quarantined.num_asked

    def fingerprint_of(self, plan: Plan) -> tuple[str, dict[str, Any]]:
        """Return the fingerprint to publish, and its parts.

        If the rows are of two versions of the code, it is that of the older one, so that the next
        run computes all rows with one code.
        """
        if self.base is None or not self.reuse.has_mixed_code:
            return plan.fingerprint, plan.fingerprint_parts
        inputs = plan.fingerprint_parts["inputs"]
        return self.base.fingerprint, {**self.base.fingerprint_parts, "inputs": inputs}

    def changes_nothing(self, record: RunRecorder, hash_failed: Callable[[], str]) -> bool:
        """Tell whether exactly the failed rows of the base failed again in a retry.

        Args:
            record: The record of the run.
            hash_failed: Returns the sum of the hashes of the ids of the rows that fail now.
        """
        base, plan = self.base, self.plan
        if self.quarantined is None or base is None:
            return False
        then, now = base.fingerprint_parts.get("inputs"), plan.fingerprint_parts.get("inputs")
        is_same = base.fingerprint == plan.fingerprint
        is_same |= self.reuse.has_mixed_code and then == now
        is_same &= (base.num_rows, base.num_predicted) == (record.num_done, record.num_predicted)
        is_same &= dict(record.reasons) == dict(self.quarantined.reasons)
        return is_same and hash_failed() == sum_of_parts(base.quarantine_parts)


def divide(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    base: Manifest | None,
    say: Callable[[str], None],
) -> Work:
    """Divide a plan into rows to compute and rows to carry over, and store it.

    Args:
        run: The run, which holds the lease of its partition.
        plan: The plan of all rows.
        base: The published version of the partition.
        say: Shows how many rows are carried over.
    """
    retry = quarantined = None
    if run.options.retried is not None and base is not None:
        retry = Retry(base, run.options.retried)
        quarantined = read_quarantined(run.store, base, run.options.retried)
        _note_retry(run, base, quarantined)
    reuse = find_reuse(
        *(run.store, run.layout, run.job, plan, base), is_asked=run.options.reuse, retry=retry
    )
    work = Work(plan, model, base, reuse, quarantined=quarantined)
    if work.is_vain:
        return work
    if reuse.division is None:
        run.record.not_carried(reuse.why_not, reuse.looked_at)
        if base is not None:
            say(f"nothing is carried over: {reuse.why_not}")
        if retry is not None:
            log.warning("all rows are computed again: %s", reuse.why_not)
    else:
        section = carried_section(reuse)
        run.record.carried(**section.model_dump(exclude_unset=True))
        say(f"carrying over {num_of(reuse.division.num_known, 'row')}")
    of_retry = () if retry is None else (retry.base.token, sorted(retry.reasons))
    plan = adopt_plan(run.store, run.layout, reuse.plan, of_retry)
    run.record.planned(plan, model, run.job.resources.num_gpus)
    note(run=lost_run.describe(run))
    return replace(work, plan=plan, known=reuse.known(run.job))


def again(work: Work, settled: Settled, error: InfraError) -> tuple[Work, Settled]:
    """Return the work to do once more after slices were deleted; raise any other error again."""
    if isinstance(error, TooFewChecked) and work.known is not None:
        known = replace(work.known, checked_probability=error.probability)
        return replace(work, known=known), replace(settled, known=known)
    if isinstance(error, DamagedPart):
        return work, settled
    raise error


def _note_retry(run: RunContext, base: Manifest, quarantined: Quarantined) -> None:
    others = quarantined.describe_others()
    stay = f"quarantined stay {others}" if others else ""
    if quarantined.num_asked:
        rows = num_of(quarantined.num_asked, "quarantined row")
        log.info("retrying %s of version %d%s", rows, base.number, f"; {stay}" if stay else "")
    else:
        log.info("nothing to retry%s", f": {stay}" if stay else "")
    run.record.retried(
        base_version=base.number,
        entries=quarantined.num_asked,
        duplicate_ids=quarantined.num_duplicates,
        not_asked=quarantined.num_not_asked,
    )


def note_retried(run: RunContext, work: Work) -> None:
    """Note how many rows of a retry are predicted now, and how many failed again."""
    if work.quarantined is not None and work.base is not None:
        predicted = run.record.num_predicted - work.base.num_predicted
        kept = work.quarantined.num_not_asked + work.quarantined.num_duplicates
        failed = max(0, run.record.num_quarantined - kept)
        run.record.retried(recovered=max(0, predicted), failed_again=failed)


def settle(run: RunContext, work: Work, executor: Executor, say: Callable[[str], None]) -> Settled:
    """Choose what runs the model, and divide the cluster; the golden rows are the caller's.

    Args:
        work: What is to be done.
        say: Shows what is being tried.

    Raises:
        JobError: No runtime can run the model.
    """
    if work.model.origin == "factory" and not work.model.has_weights:
        warn_random_weights(work.model.name)
    hardware = executor.hardware
    allocation = allocate(run.job.resources, hardware, cost=cost_of(run.job.source))
    settled = resolve_runtime(
        run,
        work.plan,
        work.model,
        hardware,
        allocation,
        on_cluster=executor.on_cluster,
        measures=executor.measures,
        published=work.published_model,
        has_known_rows=work.reuse.division is not None,
        say=say,
    )
    allocation = settled.allocation
    if not run.store.is_object_store:
        allocation = allocation.for_local_disk(hardware)
    allocation = allocation.for_slices(work.plan.num_slices)
    return replace(settled, allocation=allocation, known=work.known)
