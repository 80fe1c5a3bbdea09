"""`pipeline submit`: run a job, or a backfill, on a Ray cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.execution.submit.job import START_TIMEOUT_S, ClusterJob, submit_job
from pipeline.execution.submit.submission import Submission
from pipeline.gates.results import parse_accepted
from pipeline.job.job import Job
from pipeline.job.reading.dates import states_of
from pipeline.job.reading.loader import read_job
from pipeline.operations.arguments import files_in, load_job, run_options
from pipeline.operations.backfill import Backfill, DateRun
from pipeline.report.showing.printed import Printed
from pipeline.runs.staleness import survey_job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Followed(Printed):
    """A job of a cluster that was followed to its end, or that keeps running."""

    job: ClusterJob

    @property
    def exit_code(self) -> int:
        """Return the exit code of the job; 0 while it runs."""
        return self.job.exit_code or 0

    def to_dict(self) -> dict[str, Any]:
        """Return the document of the job; while it runs, its id and state."""
        if self.job.exit_code is None:
            return {"job_id": self.job.job_id, "state": "running"}
        document: dict[str, Any] = json.loads(self.job.document or "{}")
        return document

    def shown(self) -> dict[str, Any]:
        """Return what the log of the job does not show: the table of dates, or that it runs."""
        document = self.to_dict()
        if self.job.exit_code is None or "dates" not in document:
            return document if self.job.exit_code is None else {}
        return Backfill(tuple(DateRun(**date_run) for date_run in document["dates"])).shown()


def submit(
    job: str,
    *,
    address: str,
    write: Callable[[str], object],
    date: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    every: str = "day",
    only: str | None = None,
    newest_first: bool = False,
    overrides: Sequence[str] = (),
    allow_import: Sequence[str] = (),
    accept: Sequence[str] = (),
    code: str | None = None,
    quiet: bool = False,
    detach: bool = False,
    start_timeout_s: float = START_TIMEOUT_S,
    needs_document: bool = False,
) -> Followed:
    """Run a job on a cluster as if it ran here, and wait for its end.

    A submission that is still running is followed. After one that failed, the next attempt is
    submitted. One that succeeded is done if the output, as far as it can be read from here, is
    complete and up to date.

    Args:
        job: Path of the job file.
        address: Job API of the cluster, http://HOST:8265.
        write: Gets the job's log, line by line.
        date: Of a run: the value of `${date}`; None: today in UTC.
        from_: The first date of a backfill; None: a run.
        to: The last date of a backfill; None: now in UTC.
        every: As of `backfill`, and so are the next two.
        only: Only dates in these states.
        newest_first: Begin with the last date.
        overrides: `section.field=value` strings.
        allow_import: Prefixes of the modules that the job may name.
        accept: `GATE=REASON` strings.
        code: The user's own code: a folder or a wheel.
        quiet: The job writes no progress and no tables.
        detach: Return as soon as the job's driver has started.
        start_timeout_s: How long a job may be pending.
        needs_document: A job that ends without its document is an error.

    Raises:
        JobError: The job file is wrong; it is checked before anything is sent.
        InfraError: The cluster does not answer, or could not run the job to its end.
        PipelineError: The job ended without the document that it was asked for.
    """
    asked = Submission(
        job,
        date,
        from_,
        to,
        every,
        only,
        newest_first,
        overrides=overrides,
        allow_import=allow_import,
        accept=accept,
        code=code,
        quiet=quiet,
    )
    parse_accepted(accept)
    states_of(only)
    loaded = read_job(job, date=asked.days[0], overrides=overrides, is_elsewhere=True)
    if code is None:
        _warn_of_local_code(loaded, job)
    done = submit_job(
        asked,
        loaded,
        address,
        write,
        is_done=lambda: _has_nothing_to_do(asked),
        detaches=detach,
        start_timeout_s=start_timeout_s,
    )
    return Followed(done.with_document() if needs_document else done)


def _has_nothing_to_do(asked: Submission) -> bool:
    """Tell whether all is published and up to date, as far as that can be seen from here."""
    try:
        options = run_options(None, asked.allow_import, job=asked.job_path)
        for day in asked.days:
            job = load_job(asked.job_path, date=day, overrides=asked.overrides)
            seen = survey_job(job, options)
            if seen.a_run_would != "do nothing":
                log.info(
                    "%s: it has ended before, but a run would %s", seen.partition, seen.a_run_would
                )
                return False
    except PipelineError as error:
        log.info("it has ended before; another attempt will see what there is to do: %s", error)
        return False
    return True


def _warn_of_local_code(job: Job, job_path: str) -> None:
    """Warn of code beside the job file, which is not sent to a cluster."""
    for field, _, file in files_in(Path(job_path).parent, job):
        log.warning(
            "%s: %s is not sent with the job: give --code, or install it on the cluster's nodes",
            field,
            file,
        )
