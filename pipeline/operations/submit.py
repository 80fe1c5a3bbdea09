"""`pipeline submit`: hand a job to a cluster's job API, and pass on what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.execution.submit.job import Submission, error_without_document, submit_job
from pipeline.execution.submit.output import JobOutput
from pipeline.gates.results import parse_accepted
from pipeline.job.reading.loader import read_job
from pipeline.operations.jobs import Date, read_date
from pipeline.operations.nearby_code import warn_of_local_code


def submit(
    job: str,
    address: str,
    *,
    write: Callable[[str], object],
    date: Date = None,
    overrides: Sequence[str] = (),
    allow_import: Sequence[str] = (),
    accept: Sequence[str] = (),
    as_json: bool = False,
    quiet: bool = False,
) -> tuple[int, str]:
    """Run a job on a cluster as if it ran here, and wait for its end.

    Args:
        job: The path of the job file; its `${env:NAME}` are those of the cluster.
        address: Of the cluster's job API, http://HOST:8265.
        write: Gets the job's log, piece by piece.
        date: The value of `${date}`; None: today in UTC.
        overrides: Texts `section.field=value`.
        allow_import: Prefixes of the modules that the job may name.
        accept: Texts `gate=reason`.
        as_json: The job writes its report as a JSON document.
        quiet: The job writes no progress and no tables.

    Returns:
        The job's exit code, and its JSON document, '' if it writes none.

    Raises:
        JobError: The job file is wrong, which is said here and not on the cluster.
        PipelineError: The job ended without the document that it was asked for.
    """
    parse_accepted(accept)
    day = read_date(date)
    warn_of_local_code(read_job(job, date=day, overrides=overrides, is_elsewhere=True), job)
    asked = Submission(job, day, overrides, allow_import, accept, as_json=as_json, quiet=quiet)
    output = JobOutput(write, has_document=as_json)
    try:
        code = submit_job(asked, address, output.add)
    finally:
        document = output.end()
    if as_json and not document:
        raise error_without_document(code)
    return code, document
