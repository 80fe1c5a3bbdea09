"""`pipeline logs`: show the log of a submitted job."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.execution.submit.attempts import find_job
from pipeline.execution.submit.job import JobLog, wait_for_driver


def logs(
    target: str,
    *,
    address: str,
    write: Callable[[str], object],
    date: str | None = None,
    follow: bool = False,
) -> None:
    """Write the log of a job as it is now, without its JSON document.

    Args:
        target: The job's id, or its job file, which means the newest submission of it.
        address: Job API of the cluster, http://HOST:8265.
        write: Gets the job's log, line by line.
        date: Of a job file: the submission for this date.
        follow: Go on until the job has ended, however it ends.

    Raises:
        JobError: There is no such job.
        InfraError: The cluster does not answer, or the job does not start.
    """
    client, job_id = find_job(target, address, date)
    with JobLog(client, job_id, write) as job_log:
        if follow:
            wait_for_driver(client, job_id, None, stops=False)
            job_log.follow()
        else:
            job_log.read()
