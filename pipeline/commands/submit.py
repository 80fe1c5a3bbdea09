"""`pipeline submit`: hand a job to a cluster's job API, and pass on what it says."""

from __future__ import annotations

import functools

import typer

from pipeline.commands.options import as_date, load_for_cluster
from pipeline.execution.submit.job import Submission, error_without_document, submit_job
from pipeline.execution.submit.output import JobOutput
from pipeline.gates.results import parse_accepted


def submit_and_follow(
    job: str,
    address: str,
    date: str | None,
    overrides: list[str],
    allow_import: list[str],
    accept: list[str],
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Submit a job, show its log, and return its exit code.

    Raises:
        JobError: The job file is wrong, which is said here and not on the cluster.
    """
    parse_accepted(accept)
    load_for_cluster(job, date, overrides)
    lists = (overrides, allow_import, accept)
    asked = Submission(job, as_date(date), *lists, as_json=as_json, quiet=quiet)
    write = functools.partial(typer.echo, nl=False, err=as_json or quiet)
    output = JobOutput(write, has_document=as_json)
    try:
        code = submit_job(asked, address, output.add)
    finally:
        document = output.end()
    if as_json and not document:
        raise error_without_document(code)
    if as_json:
        typer.echo(document)
    return code
