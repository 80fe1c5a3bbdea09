"""`pipeline logs`: the log of a job that was submitted to a cluster."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.execution.submit.attempts import find_newest
from pipeline.execution.submit.client import connect_job_api, refusals_as_ours
from pipeline.execution.submit.job import START_TIMEOUT_S, wait_for_driver
from pipeline.execution.submit.log_follower import Follower
from pipeline.execution.submit.output import JobOutput


def logs(
    target: str,
    address: str,
    *,
    write: Callable[[str], object],
    date: str | None = None,
    follow: bool = False,
) -> None:
    """Write the log of a job as it is now, or until the job ends, without its JSON document.

    Args:
        target: The id of the job; or the path of its job file, whose newest submission is meant.
        address: Of the cluster's job API, http://HOST:8265.
        write: Gets the job's log, line by line.
        date: Of a job file: the submission for it.
        follow: Go on until the job has ended, however it ends.

    Raises:
        JobError: There is no such job.
        InfraError: The cluster does not answer, or the job does not start.
    """
    client, output = connect_job_api(address), JobOutput(write)
    job_id = find_newest(client, target, date).job_id
    try:
        if follow:
            wait_for_driver(client, job_id, START_TIMEOUT_S, stops=False)
            Follower(client, job_id).pass_on(output.add)
        else:
            with refusals_as_ours(f"job {job_id}: its log cannot be read"):
                output.add(client.get_job_logs(job_id))
    finally:
        output.end()
