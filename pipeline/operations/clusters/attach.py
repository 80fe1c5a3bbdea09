"""`pipeline attach`: follow a job that was submitted to a cluster, and end as it ends."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.execution.submit.attempts import find_newest
from pipeline.execution.submit.client import connect_job_api
from pipeline.execution.submit.job import attach_to
from pipeline.execution.submit.output import JobOutput
from pipeline.operations.clusters.submit import ClusterJob, ended


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
        target: The id of the job; or the path of its job file, whose newest submission is meant.
        address: Of the cluster's job API, http://HOST:8265.
        write: Gets the job's log, line by line.
        date: Of a job file: the submission for it.
        needs_document: A job that ends without its document is an error.

    Raises:
        JobError: There is no such job.
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    client, output = connect_job_api(address), JobOutput(write)
    job_id = find_newest(client, target, date).job_id
    try:
        done = attach_to(client, job_id, output.add)
    finally:
        document = output.end()
    return ended(ClusterJob(job_id, done.exit_code, document), needs_document=needs_document)
