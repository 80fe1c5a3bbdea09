"""`pipeline rollback`: publish a replaced version again."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.commit.publish import rollback as restore
from pipeline.commit.tables import table_of
from pipeline.job.reading.loader import Overrides
from pipeline.operations.arguments import Date, JobLike, load_job
from pipeline.operations.gc import held_partition
from pipeline.report.showing.printed import printed

log = logging.getLogger(__name__)


@printed
def rollback(
    job: JobLike, *, to: int | None = None, date: Date = None, overrides: Overrides = ()
) -> dict[str, Any]:
    """Publish a replaced version of the job's partition again; return the new version.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        to: Number of the version; None: the newest replaced one.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.

    Raises:
        JobError: There is no such version.
        PartitionBusy: A run holds the partition.
    """
    loaded = load_job(job, date=date, overrides=overrides, needs_model=False)
    with held_partition(loaded) as (store, layout, run_id, lease):
        manifest = restore(
            store,
            layout,
            run_id,
            keep_versions=loaded.sink.keep_versions,
            to_number=to,
            table=table_of(loaded.sink, store),
        )
        if lease is not None:
            lease.is_of_run = True
    log.warning(
        "%s: the next run of this job publishes version %d, unless its input and settings equal "
        "those of version %d: change the job first, or stop its scheduler",
        layout.name,
        manifest.number + 1,
        manifest.restored_from,
    )
    return {
        "partition": layout.name,
        "version": manifest.number,
        "restored_from": manifest.restored_from,
        "rows": manifest.num_rows,
    }
