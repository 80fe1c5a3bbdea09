"""What a manifest is made of: the job, the image, the size of the machines, the names."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.job.deadline import seconds_until
from pipeline.job.job import Job
from pipeline.job.reading.loader import read_job
from pipeline.job.reading.yaml_reader import read_yaml
from pipeline.storage.errors import redact, secret_values

Kind = Literal["dockerfile", "job", "cron-job", "indexed-job", "ray-job", "ray-cron-job"]
KINDS: tuple[Kind, ...] = (
    *("dockerfile", "job", "cron-job", "indexed-job"),
    *("ray-job", "ray-cron-job"),
)
Submission = Literal["sidecar", "http"]
DRAIN_S = 120
"""From SIGTERM to the end of a run: slices under way, the report, the lease."""
_DAY_S = 24 * 3600
_MAX_NAME_CHARS = 47
"""KubeRay's limit for a RayJob, the strictest of all kinds."""
_NO_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Asked:
    """What the caller asks for."""

    kind: Kind
    image: str
    """That the Dockerfile builds, with its registry and tag."""
    secrets: tuple[str, ...] = ()
    """Names of Secrets whose entries become environment variables."""
    cron: str | None = None
    time_zone: str = "Etc/UTC"
    date: dt.date | None = None
    """The value of `${date}`; None: the day on which the run starts, UTC."""
    dates: tuple[dt.date, dt.date] | None = None
    """The first and the last one of an Indexed Job."""
    workers: int = 2
    """Pods beside the head of a Ray cluster."""
    cpus: int = 8
    memory_gib: int = 32
    """Of a pod that computes."""
    queue: str | None = None
    """Kueue's LocalQueue."""
    submission: Submission = "sidecar"
    allow_import: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobText:
    """A job, and the file that it is read from."""

    job: Job
    text: str
    name: str
    """Of the resources: a DNS label."""

    @classmethod
    def read(cls, path: str) -> JobText:
        """Read a job file that another machine will run.

        Raises:
            JobError: It is wrong, or a credential is written out in it.
        """
        # Any day: what depends on it is substituted where the job runs.
        job = read_job(path, date=dt.date(2000, 1, 1), is_elsewhere=True)
        for where, value in _texts(read_yaml(path).value, ()):
            if _is_secret(where, value):
                raise JobError(
                    f"{path}: {'.'.join(where)}: a manifest shows what is in it; write "
                    "${env:NAME}, and give the pods NAME from a Secret (--secret)"
                )
        return cls(job, Path(path).read_text(), _name(Path(path).stem))

    @property
    def max_s(self) -> int | None:
        """Return the seconds that a run may take, with its drain; None if it has no deadline."""
        deadline = self.job.run.deadline
        if deadline is None:
            return None
        # Until a time of day it is a day at most, whenever the run starts.
        run_s = _DAY_S if ":" in deadline else seconds_until(deadline, dt.datetime.now(dt.UTC))
        return int(run_s) + DRAIN_S

    @property
    def wants_gpu(self) -> bool:
        """Tell whether an actor of it needs a GPU."""
        return self.job.resources.num_gpus > 0


def _name(stem: str) -> str:
    found = _NO_NAME.sub("-", stem.lower()).strip("-")
    name = found if found[:1].isalpha() else f"job-{found}"
    return name[:_MAX_NAME_CHARS].strip("-")


def _texts(value: Any, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*where, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _texts(item, (*where, str(index)))
    elif isinstance(value, str):
        yield where, value


def _is_secret(where: Sequence[str], value: str) -> bool:
    if value.startswith("${env:"):
        return False
    if "storage_options" in where:
        return bool(secret_values({where[-1]: value}))
    hidden = redact(value)
    return hidden != clean_message(value, len(hidden))
