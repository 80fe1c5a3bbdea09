"""`pipeline manifest kubernetes`: what runs a job on Kubernetes, as text for `kubectl apply`."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.core.errors import JobError
from pipeline.operations.clusters.kubernetes import batch, ray
from pipeline.operations.clusters.kubernetes.asked import KINDS, Asked, JobText, Kind, Submission
from pipeline.operations.clusters.kubernetes.pods import Document, config_map, dockerfile
from pipeline.operations.jobs import Date, read_date

_SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_MADE: dict[Kind, Callable[[JobText, Asked], Document]] = {
    "job": batch.job,
    "cron-job": batch.cron_job,
    "indexed-job": batch.indexed_job,
    "ray-job": ray.ray_job,
    "ray-cron-job": ray.ray_cron_job,
}


@dataclass(frozen=True)
class Manifest:
    """What is printed."""

    kind: Kind
    text: str
    documents: tuple[Document, ...] = ()
    """As the API takes them; a Dockerfile has none."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {"kind": self.kind, "documents": [*self.documents], "text": self.text}


def manifest(
    target: str,
    job: str,
    *,
    kind: str | None = None,
    image: str | None = None,
    cron: str | None = None,
    time_zone: str | None = None,
    date: Date = None,
    from_: Date = None,
    to: Date = None,
    secrets: Sequence[str] = (),
    workers: int = 2,
    cpus: int = 8,
    memory_gib: int = 32,
    queue: str | None = None,
    submission: Submission = "sidecar",
    allow_import: Sequence[str] = (),
) -> Manifest:
    """Return what runs a job on a cluster; writes nothing, and talks to none.

    Args:
        target: `kubernetes`.
        job: The path of the job file. `${env:NAME}` in it are those of the pods.
        kind: One of `KINDS`; None: a `cron-job` with `cron`, an `indexed-job` with `from_`,
            otherwise a `ray-job`.
        image: Of the pods; a Dockerfile needs none.
        cron: The schedule of a `cron-job` or `ray-cron-job`.
        time_zone: Of the schedule; None: UTC.
        date: The value of `${date}` of a `job` or `ray-job`; None: the day it starts, UTC.
        from_: The first date of an `indexed-job`.
        to: Its last date; None: today, UTC.
        secrets: Names of Secrets whose entries become environment variables of the pods.
        workers: Pods of a Ray cluster beside its head, or of an `indexed-job` at a time.
        cpus: Of a pod that computes.
        memory_gib: Of a pod that computes.
        queue: Kueue's LocalQueue, which starts the job.
        submission: How KubeRay submits a RayJob.
        allow_import: Prefixes of the modules that the job may name.

    Raises:
        JobError: The job is wrong, has a credential in it, or cannot run elsewhere; or the options
            do not go together.
    """
    if target != "kubernetes":
        raise JobError(f"manifest {target}: write kubernetes")
    chosen = _kind(kind, cron, from_)
    text = JobText.read(job)
    if chosen == "dockerfile":
        return Manifest(chosen, dockerfile(text))
    _require(chosen, image=image, cron=cron, date=date, from_=from_, to=to, queue=queue)
    if time_zone and cron is None:
        raise JobError("--time-zone is that of a schedule: give --cron, too")
    for name in secrets:
        if not _SECRET_NAME.fullmatch(name):
            raise JobError("--secret: write the name of a Secret of the cluster, never a value")
    assert image is not None
    asked = Asked(
        chosen,
        image,
        tuple(secrets),
        cron,
        time_zone or "Etc/UTC",
        None if date is None else _day(date),
        None if from_ is None else (_day(from_), _day(to)),
        workers,
        cpus,
        memory_gib,
        queue,
        submission,
        tuple(allow_import),
    )
    if asked.dates and asked.dates[0] > asked.dates[1]:
        raise JobError(f"--from {asked.dates[0]} is after --to {asked.dates[1]}")
    documents = (config_map(text), _MADE[chosen](text, asked))
    return Manifest(chosen, dump(documents), documents)


def _day(date: Date) -> dt.date:
    day = read_date(date)
    if isinstance(day, dt.datetime):
        raise JobError(f"date {date}: a manifest is for days: write YYYY-MM-DD")
    return day


def _kind(kind: str | None, cron: str | None, from_: Date) -> Kind:
    if kind is None:
        return "cron-job" if cron else "indexed-job" if from_ else "ray-job"
    for known in KINDS:
        if kind == known:
            return known
    raise JobError(f"--kind {kind}: write one of {', '.join(KINDS)}")


def _require(kind: Kind, **given: object) -> None:
    """Refuse options that a kind has no use for, and the lack of one that it needs."""
    needed = {"image"} | ({"cron"} if "cron" in kind else set())
    needed |= {"from_"} if kind == "indexed-job" else set()
    taken = needed | ({"to"} if kind == "indexed-job" else set())
    taken |= {"date"} if kind in ("job", "ray-job") else set()
    # Of a RayCronJob's own jobs none can be given the label that Kueue looks for.
    taken |= {"queue"} if kind != "ray-cron-job" else set()
    for name, value in given.items():
        option = f"--{name.rstrip('_')}"
        if value is None and name in needed:
            raise JobError(f"a {kind} needs {option}")
        if value is not None and name not in taken:
            raise JobError(f"a {kind} takes no {option}")


def _text(dumper: Any, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)
    return node


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, so that the job file can be read in it."""

    yaml_representers = {**yaml.SafeDumper.yaml_representers, str: _text}  # noqa: RUF012

    def ignore_aliases(self, _: object) -> bool:
        return True


def dump(documents: Sequence[Document]) -> str:
    """Return documents as one text of YAML."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, explicit_start=True)
