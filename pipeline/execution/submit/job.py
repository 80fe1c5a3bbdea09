"""Run a job on a Ray cluster through its job API, as if it ran here.

The cluster receives the job file, the user's code and this package, so that both sides run the
same code; dependencies must be installed there. No environment variable of this machine is sent:
everyone who can list the jobs of a cluster sees their command, metadata and environment. Paths,
credentials and `${env:NAME}` are those of the cluster's nodes.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.core.environment import SUBMITTED
from pipeline.core.errors import InfraError, PipelineError
from pipeline.execution.submit.attempts import Attempt, attempts_at, key_of
from pipeline.execution.submit.client import GIVE_UP_S, connect_job_api, one_line, refusals_as_ours
from pipeline.execution.submit.code import Package, packed
from pipeline.execution.submit.submission import Submission, identify, refuse_secrets
from pipeline.job.job import Job

log = logging.getLogger(__name__)

# Ray's default, 3 s, is too short to write a report and release the lease.
_CLUSTER_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30", SUBMITTED: "1"}
_SUBMITTER = "submitter"
"""Key in the metadata of a job: the submission that started it."""
_START_TIMEOUT = "start_timeout_s"
"""Key in the metadata of a job: how long it may be pending."""
START_TIMEOUT_S = 120.0
"""On a head with free resources, a driver starts within seconds."""
_NOTICE_AFTER_S = 10.0
_KEEPS_RUNNING = "job %s keeps running; pipeline stop %s --address ... ends it"
PAUSE_S = 1.0
_PAUSE_RATIO = 10
"""A pause lasts this many times as long as reading the log, which is read whole each time."""


@dataclass(frozen=True)
class ClusterJob:
    """A job on a cluster, and how it ended."""

    job_id: str
    exit_code: int | None
    """None while it runs."""
    document: str = ""
    """Its JSON document; '' while it runs."""

    def with_document(self) -> ClusterJob:
        """Return this job.

        Raises:
            PipelineError: It has ended without a document.
        """
        if self.exit_code is None or self.document:
            return self
        error_types = {
            error_type.exit_code: error_type for error_type in PipelineError.__subclasses__()
        }
        default = InfraError if self.exit_code == 0 else PipelineError
        raise error_types.get(self.exit_code, default)(
            f"the job ended with exit code {self.exit_code}; its log has no JSON document"
        )


@dataclass
class JobLog:
    """Passes the log of a job on line by line, through lost connections; keeps its document.

    The log of a cluster is one stream: what the job writes to stdout and stderr, and what Ray adds.
    A line that is not finished is passed on at the end of the body.
    """

    client: Any
    job_id: str
    write: Callable[[str], object]
    document: str = ""
    """The JSON document of a run or a backfill; '' until it comes."""
    _num_chars: int = field(default=0, init=False)
    _rest: str = field(default="", init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        rest, self._rest = self._rest, ""
        if rest:
            self._pass_on(rest)

    def follow(self) -> Any:
        """Write what is new in the log until the job has ended; return Ray's details of the job.

        Raises:
            InfraError: The cluster has not answered for a while, or no longer knows the job.
        """
        while True:
            with refusals_as_ours(f"job {self.job_id}: the job may keep running"):
                details = self.client.get_job_info(self.job_id)
            began = time.monotonic()
            try:
                self.read()
            except InfraError as error:  # such as a node that is gone
                level = logging.WARNING if details.status.is_terminal() else logging.DEBUG
                log.log(level, "%s", error)
            if details.status.is_terminal():
                return details
            time.sleep(max(PAUSE_S, _PAUSE_RATIO * (time.monotonic() - began)))

    def read(self) -> None:
        """Write what is new in the log.

        Raises:
            InfraError: It cannot be read.
        """
        with refusals_as_ours(f"job {self.job_id}: its log cannot be read"):
            whole = self.client.get_job_logs(self.job_id)
        new, self._num_chars = whole[self._num_chars :], len(whole)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        if _is_document(line):
            line, self.document = self.document, line
            if not line:
                return
        self.write(f"{line}\n")


def submit_job(
    asked: Submission,
    job: Job,
    address: str,
    write: Callable[[str], object],
    *,
    is_done: Callable[[], bool],
    detaches: bool,
    start_timeout_s: float,
) -> ClusterJob:
    """Run a job on a cluster, unless it runs there already, and pass its log on to the end.

    Args:
        asked: The submission.
        job: Its job file, read for the first date.
        address: Job API of the cluster, `http://HOST:8265` or `https://...`.
        write: Gets the log, line by line.
        is_done: Tells whether the output of an attempt that succeeded is complete.
        detaches: Return when the driver has started.
        start_timeout_s: How long the job may be pending.

    Raises:
        JobError: The address or an override cannot be used, or the extra `submit` is missing.
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    refuse_secrets(asked.overrides)
    client, submitter = connect_job_api(address), uuid.uuid4().hex
    with packed(asked.job_path, asked.code) as package:
        decides = [asked.decides, job.model_dump_json(), package.code_digest]
        partition = asked.dates if asked.from_ is not None else job.sink.partition or "all"
        key = key_of(Path(asked.job_path).stem, partition, decides)
        job_id, is_new = _choose(client, key, is_done, start_timeout_s)
        with JobLog(client, job_id, write) as job_log:
            try:
                if is_new:
                    is_new = _send(client, job_id, asked, package, submitter, start_timeout_s)
                how = "submitted to" if is_new else "already submitted to"
                log.info("job %s: %s %s", job_id, how, client.where)
                details = wait_for_driver(client, job_id, start_timeout_s, stops=True)
                has_ended = details.status.is_terminal()
                if not is_new:
                    log.info("job %s: %s", job_id, "has ended" if has_ended else "attaching")
                if detaches and not has_ended:
                    log.info("to follow it: pipeline attach %s --address %s", job_id, client.where)
                    return ClusterJob(job_id, None)
                details = job_log.follow()
            except KeyboardInterrupt:
                # The id is ours, so that even a job whose submission was cut short can be stopped.
                if not is_new or _submitter_of(client, job_id) != submitter:
                    log.info(_KEEPS_RUNNING, job_id, job_id)
                    raise
                log.info("stopping job %s on the cluster", job_id)
                stop_job(client, job_id)
                details = job_log.follow()
        return ClusterJob(job_id, exit_code_of(details, job_id), job_log.document)


def attach_to(client: Any, job_id: str, write: Callable[[str], object]) -> ClusterJob:
    """Pass the log of a job on to its end, without stopping it.

    Raises:
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    with JobLog(client, job_id, write) as job_log:
        try:
            wait_for_driver(client, job_id, None, stops=False)
            details = job_log.follow()
        except KeyboardInterrupt:
            log.info(_KEEPS_RUNNING, job_id, job_id)
            raise
    return ClusterJob(job_id, exit_code_of(details, job_id), job_log.document)


def _choose(
    client: Any, key: str, is_done: Callable[[], bool], start_timeout_s: float
) -> tuple[str, bool]:
    """Return the id of the attempt to follow, and whether it is still to be submitted."""
    attempts = attempts_at(client, key)
    if not attempts:
        return f"{key}-a1", True
    last = attempts[-1]
    if last.goes_on(start_timeout_s) or (last.exit_code == 0 and is_done()):
        return last.job_id, False
    return f"{key}-a{last.number + 1}", True


def _send(
    client: Any,
    job_id: str,
    asked: Submission,
    package: Package,
    submitter: str,
    start_timeout_s: float = START_TIMEOUT_S,
) -> bool:
    """Submit a job; return False if another submission did so at the same moment."""
    metadata = {**identify(asked.job_path), "date": asked.dates, _SUBMITTER: submitter}
    metadata[_START_TIMEOUT] = f"{start_timeout_s:g}"
    try:
        with refusals_as_ours(f"job {job_id}: cannot be submitted"):
            client.submit_job(
                entrypoint=asked.entrypoint,
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(package.folder),
                    "py_modules": [str(Path(__file__).parents[2])],
                    "env_vars": dict(_CLUSTER_ENVIRONMENT),
                },
                metadata=metadata,
            )
        return True
    except InfraError as error:
        refused = error
    # Ray accepts an id once, so a retry after a lost answer is refused as well.
    started_by = _submitter_of(client, job_id)
    if started_by is None:
        raise refused
    return started_by == submitter


def _submitter_of(client: Any, job_id: str) -> str | None:
    """Return the submission that started a job; None if there is no such job."""
    try:
        details = client.get_job_info(job_id)
    except RuntimeError:
        return None
    return str((details.metadata or {}).get(_SUBMITTER))


def wait_for_driver(client: Any, job_id: str, timeout_s: float | None, *, stops: bool) -> Any:
    """Wait until a job has a driver, or has ended; return Ray's details of it.

    Args:
        timeout_s: How long it may take; None: the timeout of its submission.
        stops: Stop a job that takes longer, so that it does not start later.

    Raises:
        InfraError: It takes longer; the next submission is another attempt.
    """
    began, is_logged = time.monotonic(), False
    while True:
        with refusals_as_ours(f"job {job_id}"):
            details = client.get_job_info(job_id)
        if details.status.value != "PENDING":
            return details
        if timeout_s is None:
            timeout_s = float((details.metadata or {}).get(_START_TIMEOUT, START_TIMEOUT_S))
        why, waited_s = one_line(details.message or "no driver yet"), time.monotonic() - began
        if waited_s > timeout_s:
            if stops:
                with refusals_as_ours(f"job {job_id}: cannot be stopped"):
                    client.stop_job(job_id)
            raise InfraError(
                f"job {job_id}: pending for {timeout_s:g} s, and no driver has started: {why}"
            )
        if waited_s > _NOTICE_AFTER_S and not is_logged:
            log.info("job %s: pending (timeout %g s): %s", job_id, timeout_s, why)
            is_logged = True
        time.sleep(PAUSE_S)


def stop_job(client: Any, job_id: str) -> None:
    """Ask the cluster to stop a job, and wait until it has written its report and ended.

    Raises:
        InfraError: The cluster does not answer, or the job does not end.
    """
    until = time.monotonic() + GIVE_UP_S
    with refusals_as_ours(f"job {job_id}: cannot be stopped, and may keep running"):
        # Ray refuses to stop a job that is just starting.
        is_asked = False
        while not client.get_job_status(job_id).is_terminal():
            is_asked = is_asked or client.stop_job(job_id)
            if time.monotonic() > until:
                raise InfraError(f"job {job_id}: did not stop, and may keep running")
            time.sleep(PAUSE_S)


def exit_code_of(details: Any, job_id: str) -> int:
    """Return the exit code of an ended job.

    Raises:
        InfraError: It ended without one, or with one that is not ours.
    """
    code = Attempt(job_id, job_id, 1, details).exit_code
    if code is not None:
        return code
    code = details.driver_exit_code
    how = "without an exit code" if code is None else f"with exit code {code}"
    raise InfraError(f"job {job_id}: ended {how}: {one_line(details.message)}")


def _is_document(line: str) -> bool:
    """Tell whether a line is the document of a run or, with `dates`, of a backfill."""
    if not line.startswith("{"):
        return False
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and not document.keys().isdisjoint(("status", "dates"))
