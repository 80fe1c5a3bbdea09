"""`pipeline retry`: run only the quarantined rows of a partition again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.dataflow import run_job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.arguments import Accepted, Date, JobLike, load_job, name_of, run_options
from pipeline.report.document import Report
from pipeline.reuse.retried import check_reasons
from pipeline.runs.progress import Progress, shown_on


def retry(
    job: JobLike,
    *,
    reasons: Sequence[str] = (),
    date: Date = None,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    accept: Accepted = (),
    progress: Progress | None = None,
    owns_process: bool = False,
) -> Report:
    """Compute the quarantined rows of the job's partition again, and reuse all others.

    It is a run of the job that reuses published rows, whatever `run.reuse` is. If none can be
    reused, all rows are computed, and the log has the reason.

    Args:
        job: The job that published it.
        reasons: Only rows with these reasons; empty: all that can be retried.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.
        address: The Ray cluster; None starts a local Ray.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        progress: As for `run`.
        owns_process: As for `run`.

    Returns:
        The report.

    Raises:
        JobError: There is no such reason, or nothing is published.
        PipelineError: As for `run`.
    """
    options = run_options(address, allow_import, accept, job=job, owns_process=owns_process)
    options = replace(options, retried=check_reasons(reasons))
    loaded = load_job(job, date=date, overrides=overrides)
    with shown_on(progress) as shown:
        shown.phase(f"retrying {name_of(job)}")
        return run_job(loaded, options, shown)
