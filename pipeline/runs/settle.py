"""Settle how a plan is carried out on a cluster, before its first row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.models.weights.weights import warn_random_weights
from pipeline.planning.allocation import Hardware, allocate
from pipeline.preprocessing.input_facts import cost_of
from pipeline.runs.context import RunContext, Settled
from pipeline.runs.tuning.auto import resolve_runtime
from pipeline.runs.work import Work


def settle(
    run: RunContext,
    work: Work,
    hardware: Hardware,
    *,
    on_cluster: bool,
    say: Callable[[str], None],
) -> Settled:
    """Choose what runs the model, and divide the cluster; the golden rows are the caller's.

    Args:
        work: What is to be done.
        hardware: What the Ray in use has.
        on_cluster: That Ray is not one on this machine that this process has started.
        say: Shows what is being tried.

    Raises:
        JobError: No runtime can run the model.
    """
    if work.model.kind == "factory" and not work.model.has_weights:
        warn_random_weights(work.model.name)
    allocation = allocate(run.job.resources, hardware, cost=cost_of(run.job.source))
    settled = resolve_runtime(
        run,
        work.plan,
        work.model,
        hardware,
        allocation,
        on_cluster=on_cluster,
        published=work.published_model,
        has_known_rows=work.reuse.division is not None,
        say=say,
    )
    allocation = settled.allocation
    if not run.store.is_object_store:
        allocation = allocation.for_local_disk(hardware)
    allocation = allocation.for_slices(work.plan.num_slices)
    return replace(settled, allocation=allocation, known=work.known)
