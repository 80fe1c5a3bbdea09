"""A run or a backfill for a cluster, as the command that the cluster executes."""

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
    """A run on a cluster or, with `from_`, a backfill.

    Raises:
        JobError: An argument of one is given for the other.
    """

    job_path: str
    """The job file on this machine; its `${env:NAME}` are read on the cluster."""
    date: str | None = None
    """Value of `${date}` of a run."""
    from_: str | None = None
    """First date of a backfill, which is one job for all dates."""
    to: str | None = None
    """Last date of a backfill."""
    every: str = "day"
    """Of a backfill, as are the next two: see its command."""
    only: str | None = None
    newest_first: bool = False
    overrides: Sequence[str] = ()
    """`section.field=value` strings."""
    allow_import: Sequence[str] = ()
    """Module prefixes that `model.factory` may name."""
    accept: Sequence[str] = ()
    """`GATE=REASON` strings."""
    code: str | None = None
    """The user's code on this machine: a folder or a wheel."""
    quiet: bool = False
    """The job writes no progress and no tables."""

    def __post_init__(self) -> None:
        of_backfill = (self.to, self.only, self.every, self.newest_first)
        if self.from_ is None and of_backfill != (None, None, "day", False):
            raise JobError(
                "submit: --to, --every, --only and --newest-first need --from, which makes it a "
                "backfill"
            )
        if self.from_ is not None and self.date is not None:
            raise JobError(
                "submit: give --date for a run, or --from and --to for a backfill, not both"
            )

    @cached_property
    def days(self) -> Sequence[dt.date]:
        """The dates, or hours, to run.

        Raises:
            JobError: A date is wrong, or there are too many.
        """
        if self.from_ is None:
            return [now() if self.date is None else parse_date(self.date)]
        last = now(self.every) if self.to is None else parse_date(self.to)
        return dates_between(parse_date(self.from_), last, self.every)

    @property
    def dates(self) -> str:
        """Return the dates as one readable name."""
        first, last = date_text(self.days[0]), date_text(self.days[-1])
        return first if self.from_ is None else f"{first}-to-{last}"

    @property
    def decides(self) -> str:
        """Return the command without options that do not change the output."""
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
        """Return the command as one line for a shell.

        It always has `--json`: a command that attaches later may need the document.
        """
        order = " --newest-first" * self.newest_first
        return f"{self.decides}{order} --json{' --quiet' * self.quiet}"


def identify(job_path: str) -> dict[str, str]:
    """Return the metadata by which the submissions of a job file are found: its name and its sink.

    Teams may have job files of the same name, but not the same output. The sink is that of the
    file, before overrides.

    Raises:
        JobError: The file cannot be read, or is no mapping in plain YAML.
    """
    sink = read_yaml(job_path).value.get("sink")
    uri = sink.get("uri") if isinstance(sink, dict) else sink
    # A digest, since everyone who can list the jobs sees it.
    digest = hashlib.sha256(json.dumps(uri).encode()).hexdigest()[:16]
    return {"job": Path(job_path).stem, "sink": digest}


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Refuse overrides of storage options, which everyone who lists the jobs would see.

    Raises:
        JobError: There is one.
    """
    for override in overrides:
        name, _, text = override.partition("=")
        if "storage_options" in name or "storage_options" in json.dumps(parse_value(text)):
            raise JobError(
                f"--set {name}: the cluster would show storage_options to everyone who lists its "
                "jobs; write them in the job file as ${env:NAME}"
            )
