"""`pipeline status` and `pipeline stop` of jobs that were submitted to a cluster."""

from __future__ import annotations

from typing import Any

from pipeline.execution.submit.attempts import find_attempts, find_newest
from pipeline.execution.submit.client import connect_job_api
from pipeline.execution.submit.job import stop_job


def status_of_submitted(target: str, address: str, date: str | None = None) -> list[dict[str, Any]]:
    """Say how the submissions of a job are, newest first.

    Args:
        target: The id of a job, or the path of a job file.
        address: Of the cluster's job API, http://HOST:8265.
        date: Of a job file: only submissions for it.

    Raises:
        JobError: There is none.
        InfraError: The cluster does not answer.
    """
    found = find_attempts(connect_job_api(address), target, date)
    return [each.to_dict() for each in reversed(found)]


def stop_submitted(target: str, address: str, date: str | None = None) -> dict[str, Any]:
    """Stop a job, and wait until it has ended; what it has done is kept, and its exit code is 6.

    Args:
        target: The id of the job; or the path of its job file, whose newest submission is meant.
        address: Of the cluster's job API, http://HOST:8265.
        date: Of a job file: the submission for it.

    Returns:
        How it is then; a job that had ended before is left as it is.

    Raises:
        JobError: There is no such job.
        InfraError: The cluster does not answer, or the job does not end: it may go on.
    """
    client = connect_job_api(address)
    job_id = find_newest(client, target, date).job_id
    stop_job(client, job_id)
    return find_newest(client, job_id).to_dict()
