"""The arguments that operations share: jobs, dates and the options of a run."""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.core.errors import JobError
from pipeline.gates.results import parse_accepted
from pipeline.job.job import Job
from pipeline.job.reading.dates import dates_between, now, parse_date, whole
from pipeline.job.reading.loader import Overrides, parse_job, read_job
from pipeline.job.reading.yaml_reader import parse
from pipeline.runs.context import RunOptions
from pipeline.storage.store import read_file

JobLike = Job | str | os.PathLike[str] | Mapping[str, Any]
"""A loaded job, the path of a job file, or a mapping of its sections."""
Date = dt.date | str | None
"""The value of `${date}`, as text `YYYY-MM-DD`; `YYYY-MM-DDTHH` also sets `${hour}`. None: today in
UTC."""
Accepted = Mapping[str, str] | Sequence[str]
"""Gates whose failure is accepted: name -> reason, or strings `gate=reason`."""


def load_job(
    job: JobLike | None = None,
    *,
    date: Date = None,
    overrides: Overrides = (),
    needs_model: bool = True,
    **sections: Mapping[str, Any],
) -> Job:
    """Read, substitute and validate a job; return a loaded job unchanged.

    Args:
        job: The job. `${env:NAME}` is read from the environment.
        date: The value of `${date}`.
        overrides: Fields that override those of the job.
        needs_model: Its model will run, so the code that it names must be importable.
        sections: Instead of `job`, its sections: `source={...}, model={...}, sink={...}`.

    Raises:
        JobError: The file, a field or an override is wrong, or a date or overrides are given with
            a loaded job. The message has the line and the remedy.
    """
    if (job is None) != bool(sections):
        raise JobError("give a job, or its sections: source=..., model=..., sink=...")
    if job is None:
        job = sections
    if isinstance(job, Job):
        if date is not None or overrides:
            raise JobError("the job is already loaded: pass date and overrides to load_job")
        return job
    day = read_date(date)
    if isinstance(job, Mapping):
        return parse_job(job, date=day, overrides=overrides, origin="the job")
    if not isinstance(job, str | os.PathLike):
        raise JobError(f"a job is a path or a mapping of sections, not {type(job).__name__}")
    path = str(os.fspath(job))
    if "://" in path:
        return parse_job(_stored(path), date=day, overrides=overrides, origin=path)
    loaded = read_job(path, date=day, overrides=overrides)
    if needs_model:
        _require_findable(loaded, path)
    return loaded


def _stored(uri: str) -> Mapping[str, Any]:
    """Read a job file from an object store.

    Raises:
        JobError: It cannot be read, or is not a mapping in plain YAML.
    """
    try:
        sections = parse(read_file(uri, {}, "the job file").decode("utf-8-sig")).value
    except ValueError as error:
        raise JobError(f"{uri}: not valid YAML: {error}") from None
    if not isinstance(sections, dict):
        raise JobError(f"{uri}: a job file must be a mapping with source, model and sink")
    return sections


def read_date(date: Date) -> dt.date:
    """Return the date, or the hour, of a run; None: today in UTC.

    Raises:
        JobError: It is invalid.
    """
    if date is None:
        return now()
    return whole(date) if isinstance(date, dt.date) else parse_date(date)


def read_dates(first: Date, last: Date, every: str = "day") -> Sequence[dt.date]:
    """Return the dates, or the hours, of a range; None: today, or this hour, in UTC.

    Raises:
        JobError: As `dates_between`.
    """
    this = now(every)
    begin, end = (this if bound is None else read_date(bound) for bound in (first, last))
    return dates_between(begin, end, every)


def run_options(
    address: str | None,
    allow_import: Sequence[str],
    accept: Accepted = (),
    *,
    job: JobLike | None = None,
    owns_process: bool = False,
    reuse: bool = True,
) -> RunOptions:
    """Return the options of a run that are not in its job.

    Raises:
        JobError: A gate is unknown, or has no reason; or the address is a URL.
    """
    if address is not None and "://" in address:
        raise JobError(
            f"--address (or RAY_ADDRESS) {address}: write HOST:PORT of the cluster's head "
            "(default port 6379); an http:// address is for `pipeline submit`"
        )
    if isinstance(accept, Mapping):
        accept = [f"{gate}={reason}" for gate, reason in accept.items()]
    name = Path(job).stem if isinstance(job, str | os.PathLike) else None
    accepted = parse_accepted(accept)
    return RunOptions(address, tuple(allow_import), accepted, owns_process, reuse, name)


def name_of(job: JobLike) -> str:
    """Return a name for the job in a line of progress."""
    return os.fspath(job) if isinstance(job, str | os.PathLike) else "the job"


def _require_findable(job: Job, job_path: str) -> None:
    """Refuse code beside the job file, or in the current folder, that cannot be imported.

    These folders are not searched, since a file there could replace a module of any library: the
    user names the folder in PYTHONPATH, and the module with --allow-import.

    Raises:
        JobError: The job names a module in one of them.
    """
    for folder, where in (
        (Path(job_path).parent, "beside the job file"),
        (Path(), "in this folder"),
    ):
        for field, name, file in files_in(folder, job):
            if not _is_importable(name):
                raise JobError(
                    f"{field}: {file} is {where}, which is not on the import path: "
                    f"PYTHONPATH={quote(str(folder))} pipeline ... --allow-import {name}"
                )


def files_in(folder: Path, job: Job) -> Iterator[tuple[str, str, str]]:
    """Yield the fields that name code in a folder, with the top-level module and its file."""
    for field in ("factory", "postprocess"):
        target = getattr(job.model, field) or ""
        name = target.partition(":")[0].split(".")[0]
        for file in (f"{name}.py", f"{name}/__init__.py"):
            if name.isidentifier() and (folder / file).is_file():
                yield f"model.{field} = {target!r}", name, file


def _is_importable(name: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module without a file was imported
        return True


def same_partition(every: str) -> JobError:
    """Return the error for dates that would replace each other."""
    needed = "${date}" if every == "day" else "${date}T${hour}"
    return JobError(f"sink.partition is the same for several dates: it must contain {needed}")


def depends_on_date(job: JobLike, overrides: Overrides) -> bool:
    """Tell whether a job has a different partition each day."""
    if isinstance(job, Job):
        return False
    days = read_date("2000-01-01T00"), read_date("2000-01-02T01")
    one, other = (load_job(job, date=day, overrides=overrides, needs_model=False) for day in days)
    return one.sink.partition != other.sink.partition
