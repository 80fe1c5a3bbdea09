"""Settle how a plan is carried out on a cluster, before its first row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.models.spec import ModelSpec
from pipeline.planning.allocation import Hardware, allocate
from pipeline.planning.plan import Plan
from pipeline.preprocessing.input_facts import cost_of
from pipeline.runs.context import RunContext, Settled
from pipeline.runs.merging import Merge
from pipeline.runs.tuning.auto import resolve_runtime


def settle(
    run: RunContext,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    merge: Merge | None,
    *,
    on_cluster: bool,
    say: Callable[[str], None],
) -> Settled:
    """Choose what runs the model, and divide the cluster; the golden rows are the caller's.

    Args:
        plan: Its plan, adopted.
        model: As the job has it.
        hardware: What the Ray in use has.
        merge: What the rows are put together with, if they are not published alone.
        on_cluster: That Ray is not one on this machine that this process has started.
        say: Shows what is being tried.

    Raises:
        JobError: No runtime can run the model, or retried rows would be predicted otherwise than
            the published ones.
    """
    allocation = allocate(run.job.resources, hardware, cost=cost_of(run.job.source))
    settled = resolve_runtime(
        *(run, merge.named(plan) if merge else plan, model, hardware, allocation),
        on_cluster=on_cluster,
        published=merge.published_model if merge else None,
        looks_up=merge is not None and merge.lookup is not None,
        say=say,
    )
    if merge:
        merge.require_same_model(settled.plan)
    allocation = settled.allocation
    if not run.store.is_object_store:
        allocation = allocation.for_local_disk(hardware)
    allocation = allocation.for_slices(plan.num_slices)
    plan = replace(settled.plan, fingerprint=plan.fingerprint)
    lookup = merge.lookup if merge else None
    return replace(settled, plan=plan, allocation=allocation, lookup=lookup)
