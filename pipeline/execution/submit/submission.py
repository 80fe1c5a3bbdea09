"""What is to run on a cluster: a run or a backfill, as the command that does it there."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.core.errors import JobError
from pipeline.job.reading.dates import date_text, dates_between, now, parse_date
from pipeline.job.reading.yaml_reader import parse_value, read_yaml


@dataclass(frozen=True)
class Submission:
    """What is to run on a cluster, as it was asked for: a run, or with `from_` a backfill.

    Raises:
        JobError: What is given belongs to the other one.
    """

    job_path: str
    """The job file, on this machine; its `${env:NAME}` are those of the cluster."""
    date: str | None = None
    """Of a run: the value of `${date}`."""
    from_: str | None = None
    """The first date of a backfill, which is one job for all dates."""
    to: str | None = None
    """The last one."""
    every: str = "day"
    """Of a backfill, as its command has it, and so are the next two."""
    only: str | None = None
    newest_first: bool = False
    overrides: Sequence[str] = ()
    """`section.field=value` strings."""
    allow_import: Sequence[str] = ()
    """Module prefixes that `model.factory` may name."""
    accept: Sequence[str] = ()
    """`GATE=REASON` strings."""
    code: str | None = None
    """The user's own code, on this machine: a folder or a wheel."""
    quiet: bool = False
    """The job writes no progress and no tables."""

    def __post_init__(self) -> None:
        of_backfill = (self.to, self.only, self.every, self.newest_first)
        if self.from_ is None and of_backfill != (None, None, "day", False):
            raise JobError(
                "submit: --to, --every, --only and --newest-first are for a backfill, which has "
                "--from"
            )
        if self.from_ is not None and self.date is not None:
            raise JobError("submit: give --date for a run, or --from and --to for a backfill")

    @cached_property
    def days(self) -> Sequence[dt.date]:
        """The dates, or hours, that it is for.

        Raises:
            JobError: They are not written as some, or there are too many.
        """
        if self.from_ is None:
            return [now() if self.date is None else parse_date(self.date)]
        last = now(self.every) if self.to is None else parse_date(self.to)
        return dates_between(parse_date(self.from_), last, self.every)

    @property
    def dates(self) -> str:
        """Return what it is for, as people read it."""
        first, last = date_text(self.days[0]), date_text(self.days[-1])
        return first if self.from_ is None else f"{first}-to-{last}"

    @property
    def decides(self) -> str:
        """Return the command without what changes nothing in the output."""
        command = ["python", "-m", "pipeline"]
        job_file = f"./{Path(self.job_path).name}"
        first, last = date_text(self.days[0]), date_text(self.days[-1])
        if self.from_ is None:
            command += ["run", job_file, "--date", first]
        else:
            command += ["backfill", job_file, "--from", first, "--to", last]
            command += ["--every", "hour"] if isinstance(self.days[0], dt.datetime) else []
        command += ["--only", self.only] if self.only else []
        for option, values in (
            ("--set", self.overrides),
            ("--allow-import", self.allow_import),
            ("--accept", self.accept),
        ):
            for value in values:
                command += [option, value]
        return shlex.join(command)

    @property
    def entrypoint(self) -> str:
        """Return the command: one line that a shell takes apart into the same arguments.

        Always with `--json`: who attaches may want the document.
        """
        order = " --newest-first" * self.newest_first
        return f"{self.decides}{order} --json{' --quiet' * self.quiet}"


def identify(job_path: str) -> dict[str, str]:
    """Return what the cluster keeps of a job file, to find its submissions: its name and its sink.

    Files of several teams may have one name; outputs they do not share. The sink is the one that is
    written in the file, whatever an override makes of it.

    Raises:
        JobError: The file cannot be read, or is no mapping in plain YAML.
    """
    sink = read_yaml(job_path).value.get("sink")
    uri = sink.get("uri") if isinstance(sink, dict) else sink
    # A digest, as all who may list the jobs see it.
    digest = hashlib.sha256(json.dumps(uri).encode()).hexdigest()[:16]
    return {"job": Path(job_path).stem, "sink": digest}


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Refuse overrides that the cluster would show to all who list its jobs.

    Raises:
        JobError: One is about storage options.
    """
    for override in overrides:
        name, _, text = override.partition("=")
        if "storage_options" in name or "storage_options" in json.dumps(parse_value(text)):
            raise JobError(
                f"--set {name}: the cluster would show storage_options to everybody who lists its "
                "jobs; write them in the job file, as ${env:NAME}"
            )
