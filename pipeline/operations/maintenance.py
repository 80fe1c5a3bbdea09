"""The work of the commands `rollback` and `gc`: hold the lease of the partition, then do it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pipeline.commit.layout import Layout, new_run_id
from pipeline.commit.lease import hold_lease
from pipeline.commit.published.garbage import collect_garbage, unneeded_models
from pipeline.commit.published.rollback import rollback
from pipeline.commit.tables import table_of
from pipeline.job.job import Job
from pipeline.storage.store import Store


def rollback_job(job: Job, to_number: int | None) -> dict[str, Any]:
    """Roll the job's partition back, holding its lease; return what is published now."""
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    run_id = new_run_id(dt.datetime.now(dt.UTC))
    with hold_lease(store, layout, run_id, job.run.lease_ttl_s):
        manifest = rollback(
            store,
            layout,
            run_id,
            keep_versions=job.sink.keep_versions,
            to_number=to_number,
            table=table_of(job.sink.table, store),
        )
    return {
        "partition": layout.name,
        "version": manifest.number,
        "restored_from": manifest.restored_from,
        "rows": manifest.num_rows,
    }


def collect_job_garbage(job: Job, *, grace_s: float) -> dict[str, Any]:
    """Collect the garbage of the job's partition, holding its lease."""
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    run_id = new_run_id(dt.datetime.now(dt.UTC))
    with hold_lease(store, layout, run_id, job.run.lease_ttl_s):
        garbage = collect_garbage(store, layout, grace_s=grace_s)
        models = unneeded_models(store, grace_s)
        store.delete([file.path for file in models])
    return {
        "partition": layout.name,
        "deleted_files": garbage.num_files + len(models),
        "deleted_bytes": garbage.num_bytes + sum(file.size_bytes for file in models),
    }
