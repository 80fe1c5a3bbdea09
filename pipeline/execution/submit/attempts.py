"""The ids of submitted jobs, and the search for them on a cluster.

An id is `JOB-PARTITION-FINGERPRINT-aN`. The fingerprint is of the submission, since its input may
not be readable from here. Ray accepts an id once: of two submissions at the same moment, one is
refused and finds the job of the other.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import InputMissing, JobError, PipelineError, Stopped
from pipeline.execution.submit.client import connect_job_api, one_line, refusals_as_ours
from pipeline.execution.submit.submission import identify

_ID = re.compile(r"(?P<key>.+-[0-9a-f]{8})-a(?P<number>[1-9]\d*)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=-]+")
_MAX_CHARS = 80
"""Length of each name in an id, which becomes a file name."""
RAN = range(PipelineError.exit_code, InputMissing.exit_code + 1)
"""Exit codes other than 0 that are the pipeline's own."""


@dataclass(frozen=True)
class Attempt:
    """A job that was submitted to a cluster."""

    job_id: str
    key: str
    """The id without the number of the attempt."""
    number: int
    details: Any
    """Ray's `JobDetails` of it."""

    @property
    def status(self) -> str:
        """Return Ray's state: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return str(self.details.status.value)

    @property
    def exit_code(self) -> int | None:
        """Return its exit code; None if it has none of ours, or has not ended."""
        if self.status == "STOPPED":
            return Stopped.exit_code
        code = self.details.driver_exit_code
        return 0 if self.status == "SUCCEEDED" else int(code) if code in RAN else None

    def goes_on(self, start_timeout_s: float) -> bool:
        """Tell whether it runs or will run; one pending for longer than the timeout never will."""
        waited_s = time.time() - (self.details.start_time or 0) / 1000
        return self.status == "RUNNING" or (self.status == "PENDING" and waited_s < start_timeout_s)

    def to_dict(self) -> dict[str, Any]:
        """Return its state as `pipeline status` shows it."""
        metadata = self.details.metadata or {}
        return {
            "job_id": self.job_id,
            "state": self.status.lower(),
            "exit_code": self.exit_code,
            "date": metadata.get("date"),
            "started_at": _moment(self.details.start_time),
            "ended_at": _moment(self.details.end_time),
            # After these words Ray repeats the end of the log.
            "message": one_line((self.details.message or "").partition(", last available logs")[0]),
        }


def key_of(job_name: str, partition: str, decides: Sequence[str]) -> str:
    """Return the id of a submission without the number of its attempt.

    Args:
        job_name: Of the job file.
        partition: The partition that is written; of a backfill, its dates.
        decides: Texts that identify the submission.
    """
    names = [_UNSAFE.sub("-", name)[:_MAX_CHARS] for name in (job_name, partition)]
    return "-".join([*names, hashlib.sha256("\0".join(decides).encode()).hexdigest()[:8]])


def attempts_at(client: Any, key: str) -> list[Attempt]:
    """Return the attempts of a key on a cluster, in the order of their numbers."""
    attempts = [attempt for attempt in _all_attempts(client) if attempt.key == key]
    return sorted(attempts, key=lambda attempt: attempt.number)


def find_attempts(client: Any, target: str | None, date: str | None = None) -> list[Attempt]:
    """Return the submissions that a target selects, oldest first.

    Args:
        target: The id of a job, or the path of a job file; None: all jobs.
        date: Only submissions for this date; not used with an id.

    Raises:
        JobError: There is none, or the job file cannot be read.
    """
    attempts, is_id = _all_attempts(client), target is not None and _ID.fullmatch(target)
    if is_id:
        chosen = [attempt for attempt in attempts if attempt.job_id == target]
    else:
        wanted = {**(identify(target) if target else {}), **({"date": date} if date else {})}
        chosen = [
            attempt
            for attempt in attempts
            if wanted.items() <= (attempt.details.metadata or {}).items()
        ]
    if not chosen:
        what = f"job {target}" if is_id else f"job of {target}" if target else "job"
        what += f" for {date}" if date and not is_id else ""
        raise JobError(f"{client.where}: no {what} was submitted to it")
    return sorted(chosen, key=lambda attempt: attempt.details.start_time or 0)


def find_newest(client: Any, target: str, date: str | None = None) -> Attempt:
    """Return the one of `find_attempts` that is running, or else the newest.

    Raises:
        JobError: Several are running, or as `find_attempts`.
    """
    attempts = find_attempts(client, target, date)
    active = [attempt for attempt in attempts if not attempt.details.status.is_terminal()]
    if len(active) > 1:
        ids = ", ".join(attempt.job_id for attempt in active)
        raise JobError(
            f"{client.where}: {len(active)} jobs of {target} are running; give one id: {ids}"
        )
    return (active or attempts)[-1]


def find_job(target: str, address: str, date: str | None) -> tuple[Any, str]:
    """Return a client of the cluster at an address, and the id of `find_newest`.

    Raises:
        JobError: As `find_newest`, or the address is wrong.
        InfraError: The cluster does not answer.
    """
    client = connect_job_api(address)
    return client, find_newest(client, target, date).job_id


def _all_attempts(client: Any) -> list[Attempt]:
    with refusals_as_ours(f"{client.where}: its jobs cannot be listed"):
        jobs = client.list_jobs()
    named = [(job, _ID.fullmatch(job.submission_id or "")) for job in jobs]
    return [
        Attempt(match[0], match["key"], int(match["number"]), job) for job, match in named if match
    ]


def _moment(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))
