"""`pipeline history`: rows, speed, errors, time and cost, partition after partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.commit.published.read import locate
from pipeline.core.errors import JobError
from pipeline.job.reading.loader import Overrides
from pipeline.operations.jobs import Date, JobLike, load_job
from pipeline.operations.weeks.status import bound_of, is_between, is_job
from pipeline.report.history import read_reports
from pipeline.report.partition_history import History, versions_of
from pipeline.storage.store import Store


def history(
    sink: JobLike,
    *,
    partition: str | None = None,
    from_: Date = None,
    to: Date = None,
    last: int = 14,
    overrides: Overrides = (),
    storage_options: Mapping[str, Any] | None = None,
) -> History:
    """Say what runs did to each partition, and what they took, by their reports.

    Runs that were killed with all their processes have left no report, so they are not counted.

    Args:
        sink: The sink's root or a partition's folder; or a job, as of `run`.
        partition: Only this one.
        from_: Only from this date or number on.
        to: Only up to this date or number, that one included.
        last: The most partitions: the last ones by date or number; of each 16 runs at most.
        overrides: Fields that are set over those of the job.
        storage_options: fsspec options of the output; a job has its own.

    Raises:
        JobError: The job is wrong, or no run has left a report there.
        PipelineError: The output cannot be read.
    """
    price: float | None = None
    if is_job(sink):
        job = load_job(sink, overrides=overrides, needs_model=False)
        store, found = Store(job.sink.uri, job.sink.storage_options), None
        price = job.run.price_of(())
    else:
        if overrides:
            raise JobError(f"{sink}: overrides are for a job, and this is an output")
        store, found = locate(sink, dict(storage_options or {}))  # type: ignore[arg-type]
    if partition is None and found is not None and found.partition:
        partition = found.name
    first, end = bound_of(from_), bound_of(to)

    def is_wanted(name: str) -> bool:
        return partition in (None, name) and is_between(name, first, end)

    reports = read_reports(store, is_wanted, last)
    if not reports:
        raise JobError(f"{store.url('reports')}: no run has left a report there")
    return History(store.url(""), tuple(versions_of(reports, price)))
