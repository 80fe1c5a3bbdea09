"""`pipeline tune`: measure every way to run a job's model, and say what a run would choose."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from pipeline.allocation import allocate
from pipeline.auto import AUTO, choose, measure
from pipeline.cluster import connect
from pipeline.job import Job
from pipeline.layout import Layout, new_run_id
from pipeline.record import RunContext, RunOptions, RunRecord
from pipeline.run import prepare
from pipeline.storage import Store


def tune_job(job: Job, options: RunOptions) -> dict[str, Any]:
    """Measure anew and keep the figures, which runs with `auto` then go by; publishes nothing.

    Raises:
        JobError: The job is wrong, or nothing that was tried can be used.
    """
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    record = RunRecord(new_run_id(dt.datetime.now(dt.UTC)), layout.name)
    run = RunContext(job, options, store, layout, record)
    store.probe(single_writer=job.run.single_writer)
    plan, model = prepare(run)
    free = replace(model, runtime=AUTO, precision=AUTO)
    with connect(options.address) as (hardware, _):
        allocation = allocate(job.resources, hardware)
        trials = measure(run, plan, free, hardware, allocation, again=True)
    chosen = choose(trials, job.gates.min_agreement_pct, plan.num_rows, allocation)
    return {
        "model": model.name,
        "rows": plan.num_rows,
        "batch_size": plan.batch_size,
        "actors": allocation.max_actors,
        "threads_per_actor": allocation.actor_threads,
        "min_agreement_pct": job.gates.min_agreement_pct,
        "trials": [trial.to_dict() for trial in trials],
        "chosen": f"{chosen.runtime} {chosen.precision}",
    }
