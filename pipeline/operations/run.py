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

    The process is left as it was found. A Ray that is initialised in it is used and left running.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that are set over those of the job.
        address: The Ray cluster; None starts a local Ray.
        allow_import: Prefixes of the modules that the job may name.
        accept: Gates whose failure is accepted, with the reason.
        reuse: Carry rows over from earlier versions as `run.reuse` says; False: compute all.
        progress: Where to show how far it is; None: in the cell of a notebook or on a terminal,
            elsewhere nowhere.
        owns_process: The process is there for this run only: signals stop the run.

    Returns:
        The report; it is stored beside the output as well.

    Raises:
        PipelineError: With the exit code of what happened; see README.md.
        Interrupted: Ctrl-C, or the stop of a notebook; what is finished is kept, run again to go
            on. It is a KeyboardInterrupt with an exit code.
    """
    loaded = load_job(job, date=date, overrides=overrides)
    options = run_options(
        address, allow_import, accept, job=job, owns_process=owns_process, reuse=reuse
    )
    with shown_on(progress) as shown:
        shown.phase(f"running {name_of(job)}")
        return run_job(loaded, options, shown)
