"""`pipeline submit`: hand a job to a cluster's job API, and pass on what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from pipeline.core.errors import JobError, PipelineError
from pipeline.execution.submit.job import (
    START_TIMEOUT_S,
    ClusterJob,
    error_without_document,
    submit_job,
)
from pipeline.execution.submit.log_follower import JobOutput
from pipeline.execution.submit.submission import Submission
from pipeline.gates.results import parse_accepted
from pipeline.job.reading.loader import read_job
from pipeline.operations.jobs import load_job, run_options
from pipeline.operations.nearby_code import warn_of_local_code
from pipeline.operations.partitions.backfill import ONLY
from pipeline.runs.partitions.survey import survey_job

log = logging.getLogger(__name__)


def submit(
    asked: Submission,
    address: str,
    *,
    write: Callable[[str], object],
    detach: bool = False,
    start_timeout_s: float = START_TIMEOUT_S,
    needs_document: bool = False,
) -> ClusterJob:
    """Run a job on a cluster as if it ran here, and wait for its end.

    One that was submitted before and goes on is followed instead; after one that has failed, the
    next attempt is submitted; one that has succeeded is done if the output, as far as it can be
    read from here, says so, too.

    Args:
        asked: What is to run, and how.
        address: Of the cluster's job API, http://HOST:8265.
        write: Gets the job's log, line by line.
        detach: Return as soon as the job's driver has started.
        start_timeout_s: How long a job may be pending.
        needs_document: A job that ends without its document is an error.

    Raises:
        JobError: The job file is wrong, which is said here and not on the cluster.
        PipelineError: The job ended without the document that it was asked for.
    """
    parse_accepted(asked.accept)
    if asked.only is not None and asked.only not in ONLY:
        raise JobError(f"only {asked.only}: write one of {', '.join(ONLY)}")
    job = read_job(asked.job_path, date=asked.days[0], overrides=asked.overrides, is_elsewhere=True)
    if asked.code is None:
        warn_of_local_code(job, asked.job_path)
    output = JobOutput(write)
    try:
        done = submit_job(
            asked,
            job,
            address,
            output.add,
            is_done=lambda: _has_nothing_to_do(asked),
            detaches=detach,
            start_timeout_s=start_timeout_s,
        )
    finally:
        document = output.end()
    return ended(replace(done, document=document), needs_document=needs_document)


def ended(job: ClusterJob, *, needs_document: bool) -> ClusterJob:
    """Return a job.

    Raises:
        PipelineError: It has ended, and a document is missing that was asked for.
    """
    if needs_document and job.exit_code is not None and not job.document:
        raise error_without_document(job.exit_code)
    return job


def _has_nothing_to_do(asked: Submission) -> bool:
    """Tell whether all is published and up to date, as far as that can be seen from here."""
    try:
        options = run_options(None, asked.allow_import, job=asked.job_path)
        for day in asked.days:
            job = load_job(asked.job_path, date=day, overrides=asked.overrides)
            seen = survey_job(job, options)
            if seen.a_run_would != "do nothing":
                log.info(
                    "%s: it has ended before, but a run would %s", seen.partition, seen.a_run_would
                )
                return False
    except PipelineError as error:
        log.info("it has ended before; another attempt will see what there is to do: %s", error)
        return False
    return True
