"""Jobs on clusters: `submit`, `attach`, `logs`, and `status`, `stop` of submitted ones.

What is done with a job afterwards takes its id, or the path of a job file, whose newest submission
is meant (of `date`, if given), and `address`, the cluster's job API, http://HOST:8265. It raises
JobError if there is no such job, and InfraError if the cluster does not answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.execution.submit.attempts import find_attempts, find_newest
from pipeline.execution.submit.client import connect_job_api, refusals_as_ours
from pipeline.execution.submit.job import (
    START_TIMEOUT_S,
    ClusterJob,
    attach_to,
    error_without_document,
    stop_job,
    submit_job,
    wait_for_driver,
)
from pipeline.execution.submit.log_follower import Follower, JobOutput
from pipeline.execution.submit.submission import Submission
from pipeline.gates.results import parse_accepted
from pipeline.job.reading.loader import read_job
from pipeline.operations.backfill import states_of
from pipeline.operations.jobs import load_job, run_options, warn_of_local_code
from pipeline.runs.job_survey import survey_job

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
    states_of(asked.only)
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
    return _ended(replace(done, document=document), needs_document=needs_document)


def _ended(job: ClusterJob, *, needs_document: bool) -> ClusterJob:
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


def attach(
    target: str,
    address: str,
    *,
    write: Callable[[str], object],
    date: str | None = None,
    needs_document: bool = False,
) -> ClusterJob:
    """Pass the log of a job on until it ends; return its exit code and document.

    Args:
        target: The job's id, or its file.
        address: Of the job API.
        write: Gets the job's log, line by line.
        date: Of a job file: the submission for it.
        needs_document: A job that ends without its document is an error.

    Raises:
        InfraError: Also if the cluster could not run the job to its end.
    """
    client, job_id = _find(target, address, date)
    output = JobOutput(write)
    try:
        done = attach_to(client, job_id, output.add)
    finally:
        document = output.end()
    return _ended(replace(done, document=document), needs_document=needs_document)


def logs(
    target: str,
    address: str,
    *,
    write: Callable[[str], object],
    date: str | None = None,
    follow: bool = False,
) -> None:
    """Write the log of a job as it is now, without its JSON document.

    Args:
        target: The job's id, or its file.
        address: Of the job API.
        write: Gets the job's log, line by line.
        date: Of a job file: the submission for it.
        follow: Go on until the job has ended, however it ends.

    Raises:
        InfraError: Also if the job does not start.
    """
    client, job_id = _find(target, address, date)
    output = JobOutput(write)
    try:
        if follow:
            wait_for_driver(client, job_id, None, stops=False)
            Follower(client, job_id).pass_on(output.add)
        else:
            with refusals_as_ours(f"job {job_id}: its log cannot be read"):
                output.add(client.get_job_logs(job_id))
    finally:
        output.end()


def status_of_submitted(
    target: str | None, address: str, date: str | None = None
) -> list[dict[str, Any]]:
    """Say how the submissions of a job are, or of all jobs, newest first."""
    attempts = find_attempts(connect_job_api(address), target, date)
    return [attempt.to_dict() for attempt in reversed(attempts)]


def stop_submitted(target: str, address: str, date: str | None = None) -> dict[str, Any]:
    """Stop a job, and wait until it has ended; what it has done is kept, and its exit code is 6.

    Returns:
        How it is then; a job that had ended before is left as it is.

    Raises:
        InfraError: Also if the job does not end: it may go on.
    """
    client, job_id = _find(target, address, date)
    stop_job(client, job_id)
    return find_newest(client, job_id).to_dict()


def _find(target: str, address: str, date: str | None) -> tuple[Any, str]:
    """Return a client of the cluster, and the id of the job."""
    client = connect_job_api(address)
    return client, find_newest(client, target, date).job_id
