"""`pipeline status` and `pipeline stop`: how the partitions of an output are, and who works on one.

Both go by the output alone, wherever the run is.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commit.layout import WHOLE_OUTPUT, Layout, partition_order
from pipeline.commit.lease import ask_to_stop, latest_epoch, read_heartbeat
from pipeline.commit.read import locate
from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.operations.jobs import Date, JobLike, load_job, read_date, read_dates, run_options
from pipeline.published.overview import Status
from pipeline.published.survey import survey_output
from pipeline.report.showing.printed import printed
from pipeline.runs.job_survey import survey_job


def status(
    sink: JobLike,
    *,
    partition: str | None = None,
    from_: Date = None,
    to: Date = None,
    every: str = "day",
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Status:
    """Say how partitions are: complete, running, refused, interrupted, failed; starts nothing.

    Of a job, instead of an output, also which are missing, and which are stale and why.

    Args:
        sink: The sink's root or a partition's folder; or a job, as of `run`.
        partition: Only this one.
        from_: Only from this date or number on; of a job that has `${date}` it is needed.
        to: Only up to this date or number, that one included; of a job None is now in UTC.
        every: Of a job: it has a partition for each `day`, or for each `hour`.
        overrides: Fields that are set over those of the job.
        allow_import: Prefixes of the modules that the job may name.
        storage_options: fsspec options of the output; a job has its own.

    Raises:
        JobError: The job is wrong, no run has worked there, or what is given does not belong to a
            job, or to an output.
        PipelineError: The output, or the list of its partitions, cannot be read.
    """
    if is_job(sink):
        if partition is not None or storage_options:
            raise JobError("status of a job: its partition and storage_options are in the job")
        return status_of_job(
            sink, from_=from_, to=to, every=every, overrides=overrides, allow_import=allow_import
        )
    if overrides or allow_import or every != "day":
        raise JobError(f"{sink}: overrides and every are for a job, and this is an output")
    store, uri_layout = locate(sink, dict(storage_options or {}))  # type: ignore[arg-type]
    if partition is None and uri_layout is not None and uri_layout.partition:
        partition = uri_layout.name
    first, last = bound_of(from_), bound_of(to)
    rows = survey_output(store, partition)
    chosen = tuple(row for row in rows if is_between(row.partition, first, last))
    return Status(store.url(""), chosen)


def bound_of(given: Date) -> str:
    """Return a date or number as partitions have it; '' for None.

    Raises:
        JobError: It is neither.
    """
    text = "" if given is None else str(given)
    if text and not partition_order(f"={text}")[0]:
        raise JobError(f"{text}: write a date or a number, as partitions have it")
    return text


def is_job(given: JobLike) -> bool:
    """Tell a job from the URI of an output."""
    if isinstance(given, Job | Mapping):
        return True
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
    return text.endswith((".yaml", ".yml")) and os.path.isfile(text)


def is_between(partition: str, first: str, last: str) -> bool:
    """Tell whether a partition is between two dates or numbers, both included; '': no bound.

    2026-11-24T05 is between 2026-11-24 and 2026-11-24.
    """
    if not first and not last:
        return True
    is_ordered, value, _ = partition_order(partition)
    low, high = (partition_order(f"={bound}")[1] for bound in (first, last))
    return is_ordered and (not first or value >= low) and (not last or value[: len(high)] <= high)


def status_of_job(
    job: JobLike,
    *,
    from_: Date,
    to: Date,
    every: str = "day",
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
) -> Status:
    """Say how the partitions of a job are, date by date; see `status`."""
    options = run_options(None, allow_import, job=job)
    if isinstance(job, Job):
        jobs = [load_job(job, overrides=overrides)]
    else:
        days = read_dates(from_ if from_ is not None else to, to, every)
        jobs = [load_job(job, date=day, overrides=overrides) for day in days]
    names = {dated_job.sink.partition for dated_job in jobs}
    if from_ is None and len(jobs) == 1 and depends_on_date(job, overrides):
        raise JobError("which dates? the job has ${date}: give --from YYYY-MM-DD")
    if len(names) < len(jobs):
        raise same_partition(every)
    return Status(jobs[0].sink.uri, tuple(survey_job(dated_job, options) for dated_job in jobs))


def same_partition(every: str) -> JobError:
    """Say that several dates would replace each other."""
    needed = "${date}" if every == "day" else "${date}T${hour}"
    return JobError(f"sink.partition is the same for several dates: write {needed} in it")


def depends_on_date(job: JobLike, overrides: Overrides) -> bool:
    """Tell whether the partition of a job is another one each day."""
    if isinstance(job, Job):
        return False
    days = read_date("2000-01-01T00"), read_date("2000-01-02T01")
    one, other = (load_job(job, date=day, overrides=overrides, needs_model=False) for day in days)
    return one.sink.partition != other.sink.partition


@printed
def stop(
    sink: str, *, partition: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Ask the run of a partition to stop; it drains, and ends with 6 and a report.

    It hears it when it renews its lease the next time. A run that begins later is not meant.

    Args:
        sink: The sink's root, or a partition's folder.
        partition: Which partition; None takes the only one that something runs on.
        storage_options: fsspec options.

    Returns:
        The partition, and the run that was asked, None if nothing runs.

    Raises:
        JobError: No run has worked there, or runs work on several partitions and none is named.
        InfraError: The output cannot be read or written.
    """
    store, uri_layout = locate(sink, dict(storage_options or {}))
    if partition is None and uri_layout is not None and uri_layout.partition:
        partition = uri_layout.name
    rows = survey_output(store, partition)
    running = [row for row in rows if row.state == "running"]
    if len(running) > 1:
        names = ", ".join(row.partition for row in running)
        raise JobError(f"{store.url('')}: name the partition, runs work on {names}")
    if not running:
        return {"partition": partition, "asked": None, "said": "nothing runs there"}
    one = running[0]
    layout = Layout(None if one.partition == WHOLE_OUTPUT else one.partition)
    epoch = latest_epoch(store, layout)
    heartbeat = read_heartbeat(store, layout, epoch)
    if heartbeat.run_id != one.run_id:
        return {"partition": one.partition, "asked": None, "said": f"{one.run_id} has just ended"}
    is_new = ask_to_stop(store, layout, epoch, _user_at_host())
    asked = "it hears it within" if is_new else "it was asked before; it hears it within"
    end = f"pipeline status {store.url('')} shows its end"
    return {
        "partition": one.partition,
        "asked": heartbeat.run_id,
        "host": heartbeat.host,
        "pid": heartbeat.pid,
        "said": f"{asked} {heartbeat.ttl_s / 4:.0f} s; {end}",
    }


def _user_at_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
