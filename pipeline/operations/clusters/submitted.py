"""What is done with jobs that were submitted: `attach`, `logs`, and `status`, `stop` of a cluster.

Each takes the id of a job, or the path of a job file, whose newest submission is meant (of `date`,
if given), and `address`, the cluster's job API, http://HOST:8265.

Each raises JobError if there is no such job, and InfraError if the cluster does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.execution.submit.attempts import find_attempts, find_newest
from pipeline.execution.submit.client import connect_job_api, refusals_as_ours
from pipeline.execution.submit.job import (
    START_TIMEOUT_S,
    ClusterJob,
    attach_to,
    stop_job,
    wait_for_driver,
)
from pipeline.execution.submit.log_follower import Follower, JobOutput
from pipeline.operations.clusters.submit import ended


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
    return ended(replace(done, document=document), needs_document=needs_document)


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
            wait_for_driver(client, job_id, START_TIMEOUT_S, stops=False)
            Follower(client, job_id).pass_on(output.add)
        else:
            with refusals_as_ours(f"job {job_id}: its log cannot be read"):
                output.add(client.get_job_logs(job_id))
    finally:
        output.end()


def status_of_submitted(target: str, address: str, date: str | None = None) -> list[dict[str, Any]]:
    """Say how the submissions of a job are, newest first."""
    found = find_attempts(connect_job_api(address), target, date)
    return [each.to_dict() for each in reversed(found)]


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
