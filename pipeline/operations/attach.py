"""`pipeline attach`: follow a submitted job to its end."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.execution.submit.attempts import find_job
from pipeline.execution.submit.job import attach_to
from pipeline.operations.submit import Followed


def attach(
    target: str,
    *,
    address: str,
    write: Callable[[str], object],
    date: str | None = None,
    needs_document: bool = False,
) -> Followed:
    """Pass the log of a job on until it ends; return its exit code and document.

    Args:
        target: The job's id, or its job file, which means the newest submission of it.
        address: Job API of the cluster, http://HOST:8265.
        write: Gets the job's log, line by line.
        date: Of a job file: the submission for this date.
        needs_document: A job that ends without its document is an error.

    Raises:
        JobError: There is no such job.
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    done = attach_to(*find_job(target, address, date), write)
    return Followed(done.with_document() if needs_document else done)
