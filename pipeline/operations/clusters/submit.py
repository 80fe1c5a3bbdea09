"""`pipeline submit`: hand a job to a cluster's job API, and pass on what it says."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.errors import JobError, PipelineError
from pipeline.execution.submit.job import START_TIMEOUT_S, error_without_document, submit_job
from pipeline.execution.submit.log_follower import JobOutput
from pipeline.execution.submit.submission import Submission
from pipeline.gates.results import parse_accepted
from pipeline.job.reading.dates import date_text
from pipeline.job.reading.loader import read_job
from pipeline.operations.jobs import Date, load_job, read_date, read_dates, run_options
from pipeline.operations.nearby_code import warn_of_local_code
from pipeline.operations.partitions.backfill import ONLY
from pipeline.runs.partitions.job_survey import survey_job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterJob:
    """A job on a cluster, and what came of it."""

    job_id: str
    exit_code: int | None
    """None if it goes on."""
    document: str
    """Its JSON document; '' while it goes on."""


def submit(
    job: str,
    address: str,
    *,
    write: Callable[[str], object],
    date: Date = None,
    from_: Date = None,
    to: Date = None,
    every: str = "day",
    only: str | None = None,
    newest_first: bool = False,
    overrides: Sequence[str] = (),
    allow_import: Sequence[str] = (),
    accept: Sequence[str] = (),
    code: str | None = None,
    detach: bool = False,
    start_timeout_s: float = START_TIMEOUT_S,
    needs_document: bool = False,
    quiet: bool = False,
) -> ClusterJob:
    """Run a job on a cluster as if it ran here, and wait for its end.

    One that was submitted before and goes on is followed instead; after one that has failed, the
    next attempt is submitted; one that has succeeded is done if the output, as far as it can be
    read from here, says so, too.

    Args:
        job: The path of the job file; its `${env:NAME}` are those of the cluster.
        address: Of the cluster's job API, http://HOST:8265.
        write: Gets the job's log, line by line.
        date: The value of `${date}`; None: today in UTC.
        from_: The first date of a backfill, which is one job for all dates; None: a run.
        to: The last one; None: now in UTC.
        every: It has a partition for each `day`, or for each `hour`.
        only: As of `backfill`, and so is the next one.
        newest_first: Begin with the last date.
        overrides: Texts `section.field=value`.
        allow_import: Prefixes of the modules that the job may name.
        accept: Texts `gate=reason`.
        code: A folder of modules, or a wheel, that goes along with the job.
        detach: Return as soon as the job's driver has started.
        start_timeout_s: How long a job may be pending.
        needs_document: A job that ends without its document is an error.
        quiet: The job writes no progress and no tables.

    Raises:
        JobError: The job file is wrong, which is said here and not on the cluster.
        PipelineError: The job ended without the document that it was asked for.
    """
    parse_accepted(accept)
    of_backfill = (to, only, every, newest_first)
    if from_ is None and of_backfill != (None, None, "day", False):
        raise JobError(
            "submit: --to, --every, --only and --newest-first are for a backfill, which has --from"
        )
    if from_ is not None and date is not None:
        raise JobError("submit: give --date for a run, or --from and --to for a backfill")
    if only is not None and only not in ONLY:
        raise JobError(f"only {only}: write one of {', '.join(ONLY)}")
    days = [read_date(date)] if from_ is None else read_dates(from_, to, every)
    first = days[0]
    loaded = read_job(job, date=first, overrides=overrides, is_elsewhere=True)
    if code is None:
        warn_of_local_code(loaded, job)
    last = None if from_ is None else days[-1]
    partition = (
        (loaded.sink.partition or "all")
        if last is None
        else f"{date_text(first)}-to-{date_text(last)}"
    )
    asked = Submission(
        *(job, first, partition, loaded.model_dump_json(), overrides, allow_import, accept),
        quiet=quiet,
        last_date=last,
        only=only,
        newest_first=newest_first,
        code=code,
    )

    def is_done() -> bool:
        return _has_nothing_to_do(job, days, overrides, allow_import)

    output = JobOutput(write)
    try:
        done = submit_job(
            *(asked, address, output.add),
            is_done=is_done,
            detaches=detach,
            start_timeout_s=start_timeout_s,
        )
    finally:
        document = output.end()
    return ended(ClusterJob(done.job_id, done.exit_code, document), needs_document=needs_document)


def ended(job: ClusterJob, *, needs_document: bool) -> ClusterJob:
    """Return a job.

    Raises:
        PipelineError: It has ended, and a document is missing that was asked for.
    """
    if needs_document and job.exit_code is not None and not job.document:
        raise error_without_document(job.exit_code)
    return job


def _has_nothing_to_do(
    job: str, days: Sequence[dt.date], overrides: Sequence[str], allow_import: Sequence[str]
) -> bool:
    """Tell whether all is published and up to date, as far as that can be seen from here."""
    try:
        options = run_options(None, allow_import, job=job)
        for day in days:
            seen = survey_job(load_job(job, date=day, overrides=overrides), options)
            if seen.a_run_would != "do nothing":
                log.info(
                    "%s: it has ended before, but a run would %s", seen.partition, seen.a_run_would
                )
                return False
    except PipelineError as error:
        log.info("it has ended before; another attempt will see what there is to do: %s", error)
        return False
    return True
