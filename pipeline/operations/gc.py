"""`pipeline gc`: delete staged slices that no unfinished run can need any more."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections.abc import Iterator
from typing import Any

from pipeline.commit.garbage import collect_garbage, unneeded_models
from pipeline.commit.layout import Layout, is_partition, new_run_id
from pipeline.commit.lease import Lease, hold_lease, latest_epoch
from pipeline.commit.manifest import log_numbers
from pipeline.core.errors import PartitionBusy
from pipeline.core.output_folders import CONTROL
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.arguments import Date, JobLike, depends_on_date, load_job
from pipeline.report.showing.printed import printed
from pipeline.storage.store import Store

log = logging.getLogger(__name__)


@printed
def gc(
    job: JobLike,
    *,
    grace_s: float = 86400.0,
    date: Date = None,
    all_partitions: bool = False,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Delete staged slices of the job's partition that no unfinished run can need any more.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        grace_s: Files younger than this are kept.
        date: The value of `${date}`; None: today in UTC.
        all_partitions: Clean all partitions of its output, except those that a run holds.
        overrides: Fields that override those of the job.

    Raises:
        PartitionBusy: A run holds the partition.
    """
    loaded = load_job(job, date=date, overrides=overrides, needs_model=False)
    store, names = Store(loaded.sink.uri, loaded.sink.storage_options), [loaded.sink.partition]
    if all_partitions:
        folders = filter(is_partition, store.list_folders(CONTROL))
        names = [Layout.named(name).partition for name in folders]
    elif date is None and depends_on_date(job, overrides):
        log.info("%s: gc cleans this partition only; --date selects another, --all all", names[0])
    num_files = num_bytes = 0
    for name in names:
        sink = loaded.sink.model_copy(update={"partition": name})
        try:
            with held_partition(loaded.model_copy(update={"sink": sink})) as (_, layout, *_):
                garbage = collect_garbage(store, layout, grace_s=grace_s)
                num_files, num_bytes = num_files + garbage.num_files, num_bytes + garbage.num_bytes
        except PartitionBusy as error:
            if not all_partitions:
                raise
            log.warning("%s: skipped: %s", name, error)
    models = unneeded_models(store, grace_s)
    store.delete([file.path for file in models])
    return {
        **({"partitions": len(names)} if all_partitions else {"partition": layout.name}),
        "deleted_files": num_files + len(models),
        "deleted_bytes": num_bytes + sum(file.size_bytes for file in models),
    }


@contextlib.contextmanager
def held_partition(job: Job) -> Iterator[tuple[Store, Layout, str, Lease | None]]:
    """Hold the lease of the job's partition; yield no lease if no run has worked on it."""
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    run_id = new_run_id(dt.datetime.now(dt.UTC))
    if not (log_numbers(store, layout) or latest_epoch(store, layout)):
        yield store, layout, run_id, None
        return
    with hold_lease(store, layout, run_id, job.run.lease_ttl_s) as lease:
        lease.is_of_run = False
        yield store, layout, run_id, lease
