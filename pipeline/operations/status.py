"""`pipeline status`: show the state of partitions, or of submitted jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commit.layout import partition_order
from pipeline.commit.manifest import locate
from pipeline.core.errors import JobError
from pipeline.execution.submit.attempts import find_attempts
from pipeline.execution.submit.client import connect_job_api
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.arguments import (
    Date,
    JobLike,
    depends_on_date,
    load_job,
    read_dates,
    run_options,
    same_partition,
)
from pipeline.published.status import Status, survey_output
from pipeline.runs.staleness import survey_job


def status(
    sink: JobLike,
    *,
    partition: str | None = None,
    from_: Date = None,
    to: Date = None,
    every: str = "day",
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Status:
    """Return the state of partitions: complete, running, refused, interrupted, failed and so on.

    Given a job instead of an output, it also tells which are missing, and which are stale and why.

    Args:
        sink: Root of the output, or folder of a partition; or a job, as for `run`.
        partition: Only this partition.
        from_: First date or number; required for a job with `${date}`.
        to: Last date or number, inclusive; for a job, None is now in UTC.
        every: The job has a partition for each `day`, or for each `hour`.
        overrides: Fields that override those of the job.
        allow_import: Prefixes of the modules that the job may name.
        storage_options: fsspec options of the output; those of a job are in its file.

    Raises:
        JobError: The job is wrong, no run has worked on the output, or an argument does not apply.
        PipelineError: The output, or the list of its partitions, cannot be read.
    """
    if is_job(sink):
        if partition is not None or storage_options:
            raise JobError(
                "status of a job: its partition and storage_options are set in the job file"
            )
        return status_of_job(
            sink, from_=from_, to=to, every=every, overrides=overrides, allow_import=allow_import
        )
    if overrides or allow_import or every != "day":
        raise JobError(f"{sink} is an output: overrides, allow_import and every are for a job")
    store, uri_layout = locate(sink, dict(storage_options or {}))  # type: ignore[arg-type]
    if partition is None and uri_layout is not None and uri_layout.partition:
        partition = uri_layout.name
    first, last = bound_of(from_), bound_of(to)
    rows = survey_output(store, partition)
    chosen = tuple(row for row in rows if is_between(row.partition, first, last))
    return Status(store.url(""), chosen)


def bound_of(given: Date) -> str:
    """Return a date or number as text; '' for None.

    Raises:
        JobError: It is neither.
    """
    text = "" if given is None else str(given)
    if text and not partition_order(f"={text}")[0]:
        raise JobError(f"{text}: write a date or a number, like those of the partitions")
    return text


def is_job(given: JobLike) -> bool:
    """Tell a job from the URI of an output."""
    if isinstance(given, Job | Mapping):
        return True
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
    return text.endswith((".yaml", ".yml")) and os.path.isfile(text)


def is_between(partition: str, first: str, last: str) -> bool:
    """Tell whether a partition is between two dates or numbers, inclusive; '': no bound.

    2026-11-24T05 is between 2026-11-24 and 2026-11-24.
    """
    if not first and not last:
        return True
    is_ordered, value, _ = partition_order(partition)
    low, high = (partition_order(f"={bound}")[1] for bound in (first, last))
    return is_ordered and (not first or value >= low) and (not last or value[: len(high)] <= high)


def status_of_job(
    job: JobLike,
    *,
    from_: Date,
    to: Date,
    every: str = "day",
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
) -> Status:
    """Return the state of the partitions of a job, date by date; see `status`."""
    options = run_options(None, allow_import, job=job)
    if isinstance(job, Job):
        jobs = [load_job(job, overrides=overrides)]
    else:
        days = read_dates(from_ if from_ is not None else to, to, every)
        jobs = [load_job(job, date=day, overrides=overrides) for day in days]
    names = {dated_job.sink.partition for dated_job in jobs}
    if from_ is None and len(jobs) == 1 and depends_on_date(job, overrides):
        raise JobError("the job has ${date}: give --from YYYY-MM-DD")
    if len(names) < len(jobs):
        raise same_partition(every)
    return Status(jobs[0].sink.uri, tuple(survey_job(dated_job, options) for dated_job in jobs))


def status_of_submitted(
    target: str | None, address: str, date: str | None = None
) -> list[dict[str, Any]]:
    """Return the state of the submissions of a job, or of all jobs, newest first.

    Raises:
        JobError: There is none.
        InfraError: The cluster does not answer.
    """
    attempts = find_attempts(connect_job_api(address), target, date)
    return [attempt.to_dict() for attempt in reversed(attempts)]
