"""What is to run on a cluster: a run or a backfill, as the command that does it there."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import JobError
from pipeline.job.reading.dates import date_text
from pipeline.job.reading.yaml_reader import parse_value, read_yaml


@dataclass(frozen=True)
class Submission:
    """What is to run on a cluster."""

    job_path: str
    """The job file, on this machine."""
    date: dt.date
    """The logical date, the value of `${date}`; of a backfill the first one."""
    partition: str
    """What it writes."""
    document: str
    """The job as it was read, for its fingerprint."""
    overrides: Sequence[str] = ()
    """`section.field=value` strings."""
    allow_import: Sequence[str] = ()
    """Module prefixes that `model.factory` may name."""
    accept: Sequence[str] = ()
    """`GATE=REASON` strings."""
    quiet: bool = False
    last_date: dt.date | None = None
    """Of a backfill: one job does all its dates."""
    only: str | None = None
    """Of a backfill, as its command has it, and so is the next one."""
    newest_first: bool = False
    code: str | None = None
    """The user's own code, on this machine: a folder or a wheel."""

    @property
    def dates(self) -> str:
        """Return what it is for, as people read it."""
        first = date_text(self.date)
        return first if self.last_date is None else f"{first}-to-{date_text(self.last_date)}"

    @property
    def decides(self) -> str:
        """Return the command without what changes nothing in the output."""
        command = ["python", "-m", "pipeline"]
        job_file = f"./{Path(self.job_path).name}"
        if self.last_date is None:
            command += ["run", job_file, "--date", date_text(self.date)]
        else:
            dates = ("--from", date_text(self.date), "--to", date_text(self.last_date))
            command += ["backfill", job_file, *dates]
            command += ["--every", "hour"] if isinstance(self.date, dt.datetime) else []
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
