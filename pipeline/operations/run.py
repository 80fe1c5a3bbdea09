"""`pipeline run`: run a job once."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dataflow import run_job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.arguments import Accepted, Date, JobLike, load_job, name_of, run_options
from pipeline.report.document import Report
from pipeline.runs.progress import Progress, shown_on


def run(
    job: JobLike,
    *,
    date: Date = None,
    overrides: Overrides = (),
    address: str | None = None,
    allow_import: Sequence[str] = (),
    accept: Accepted = (),
    reuse: bool = True,
    progress: Progress | None = None,
    owns_process: bool = False,
) -> Report:
    """Run a job once: predict what is missing, check, publish, report.

    The process is left as it was. A Ray that is already initialised in it is used, and stays up.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.
        address: The Ray cluster; None starts a local Ray.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        reuse: Reuse rows of earlier versions according to `run.reuse`; False: compute all.
        progress: Where to show progress; None: in a notebook cell or on a terminal, if any.
        owns_process: The process exists for this run only: signals stop the run.

    Returns:
        The report, which is also stored beside the output.

    Raises:
        PipelineError: Its exit code tells the cause; see README.md.
        Interrupted: Ctrl-C, or the stop of a notebook: a KeyboardInterrupt with an exit code.
            Finished slices are kept; run again to resume.
    """
    loaded = load_job(job, date=date, overrides=overrides)
    options = run_options(
        address, allow_import, accept, job=job, owns_process=owns_process, reuse=reuse
    )
    with shown_on(progress) as shown:
        shown.phase(f"running {name_of(job)}")
        return run_job(loaded, options, shown)
